"""Write a pruning method of your own in one file, check it, and run it like any other.

The method keeps the units whose weights differ most among each other (their standard deviation).
Source: ours, an example. Run it with `python examples/own_method.py`; from the command line of Prunus it is
`prunus run --method own_method:prune ...` in this folder.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

import prunus
from prunus.graph import Graph
from prunus.methods import Pruned, Run, Units
from prunus.options import Range
from prunus.run import Settings
from prunus.tasks import Task
from prunus.testing import check_method


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """Options, each set by `--set name=value`; `Units` adds how, round_to, floor, cap and freeze.

    correction: 1 for the unbiased standard deviation, 0 for the plain one.
    """

    correction: Annotated[int, Range(0, 1)] = 1


def spread(model: nn.Module, graph: Graph, correction: int) -> dict[str, Tensor]:
    """The standard deviation of each unit's weights: {axis name: (size,)}."""
    tensors = dict(model.named_parameters())
    scores = {}
    for name, axis in graph.axes.items():
        scores[name] = torch.zeros(axis.size)
        for member in graph.members(name):
            if member.role == "produces":  # the weights that write the unit
                rows = tensors[member.tensor].detach().movedim(member.dim, 0)[member.index]
                scores[name] += rows.flatten(1).std(1, correction=correction)
    return scores


def prune(task: Task, budget: prunus.Budget, config: Config, run: Run) -> Pruned:
    """Keep the units with the largest spread that fit the budget."""
    return Pruned(keep=config.select(task.graph, spread(task.model, task.graph, config.correction), budget))


def main() -> None:
    """Check the method on tiny networks, then run it on scikit-learn's digits."""
    name = f"{__name__}:prune"
    check_method(name)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(method=name, base_epochs=3, epochs=2)
        result = prunus.prune("zoo:digits_resnet", data="digits", out=Path(folder, "run"), settings=settings)
    before, after = result.values["before"], result.values["after"]
    print(f"multiply-adds left: {after['macs'] / before['macs']:.0%}")
    print(f"accuracy before and after: {before['accuracy']:.1%} {after['accuracy']:.1%}")


if __name__ == "__main__":
    main()
