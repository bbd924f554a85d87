"""One listed model beside torch-pruning 1.6.1: analyse, L2 scores, half of every axis, removed for real.

    python benchmarks/coverage_peer.py LIST NAME FOLDER SECONDS

Started by coverage.py --peer, in a process of its own. FOLDER is where torch-pruning was installed:
`pip install --no-deps --target FOLDER torch-pruning==1.6.1`. Both get the same model, in turns, on one thread;
torch-pruning is told the classifier and, where torch's own attention is used, its heads. Prunus is told nothing, and is
timed with its proof and without. A turn is stopped after SECONDS. Prints a JSON line with CPU seconds as each turn
ends.
"""

import copy
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import coverage_models
import torch
from coverage_stages import describe, first_line, halves, lines_of_ours, same_shapes
from torch import nn

import prunus
from prunus.graph import output_tensors

ROUNDS = 3  # after one to warm up


def ours(case: coverage_models.Case, verify: str) -> nn.Module:
    graph = prunus.trace(case.model, case.example)
    keep = halves(graph, prunus.scores.magnitude(case.model, graph, p=2))
    return prunus.shrink(case.model, graph, keep, verify=verify)


def theirs(case: coverage_models.Case) -> nn.Module:
    """MagnitudePruner, which prunes in place."""
    import torch_pruning

    heads = {m: m.num_heads for m in case.model.modules() if isinstance(m, nn.MultiheadAttention)}
    pruner = torch_pruning.pruner.MagnitudePruner(
        case.model,
        case.example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=case.heads,
        output_transform=output_tensors,
        num_heads=heads,
        prune_num_heads=bool(heads),
    )
    pruner.step()
    return case.model


class OutOfTime(BaseException):
    """A turn took too long; no `except Exception` on the way may stop it."""


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the work below once it has taken so long."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"not done after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(
    act: Callable[[coverage_models.Case], nn.Module], case: coverage_models.Case, most: float
) -> dict[str, Any]:
    """CPU seconds, the multiply-adds left, and the error if there was one, on a copy of the model."""
    own = copy.deepcopy(case)
    start = time.process_time()
    try:
        with stopped_after(most):
            model = act(own)
        seconds = time.process_time() - start
        (before, whole), (after, left) = (describe(each, case.example) for each in (case.model, model))
    except (Exception, OutOfTime) as error:  # any error is a result
        return {"error": first_line(error)}
    if not same_shapes(before, after) or left >= whole:
        return {
            "error": f"outputs of {after}, not {before}; {left / max(1, whole):.2f} of the multiply-adds left"
        }
    return {"cpu_s": seconds, "macs_left": left / whole}


def main() -> None:
    kind, name, folder, most = sys.argv[1:5]
    sys.path.append(folder)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = coverage_models.build(kind, name)
    turns: dict[str, Callable[[coverage_models.Case], nn.Module]] = {
        "ours_proved": lambda each: ours(each, "on"),
        "ours": lambda each: ours(each, "off"),
        "theirs": theirs,
    }
    with lines_of_ours() as say:
        for number in range(ROUNDS + 1):
            for who, act in list(turns.items()):
                say({"begins": who})
                line = attempt(act, case, float(most))
                say({"who": who, "round": number} | line)
                if "error" in line:
                    del turns[who]


if __name__ == "__main__":
    main()
