"""The passes over one skeleton, one for each mode, and what they say together.

All of them unify the layouts of the same parameters, and find the layouts of the same integers. Then each is checked at
other widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.errors import TraceError
from prunus.graph import axes, skeleton, tracer
from prunus.graph.attributes import Attribute, Integers
from prunus.graph.axes import Axis, Layout
from prunus.graph.check import Check, same_way
from prunus.graph.modules import is_torchs
from prunus.graph.op import Tag, tag_of
from prunus.graph.operators import BATCH_NORM, DATA_DEPENDENT
from prunus.graph.outputs import Outputs, check_paths, select_outputs
from prunus.graph.sizes import Place
from prunus.graph.solve import Claim, Solver, claims
from prunus.graph.state import kept_tensors
from prunus.graph.tracer import Tracer


class Passes:
    """Runs a skeleton in one mode after the other.

    Args:
        bare: The skeleton.
        layouts: The layouts of its parameters and buffers, refined by each pass.
        chosen: The outputs that count (see outputs.py).
    """

    def __init__(self, bare: nn.Module, layouts: dict[str, list[Layout]], chosen: Outputs | None):
        self.bare, self.layouts, self.chosen = bare, layouts, chosen
        self.integers = Integers(bare)
        self.known: dict[Place, Layout] = {}
        self.read: set[Place] = set()  # the integers that some function was given
        self.met: set[str] = set()  # the parameters and buffers that an operator read
        self.outputs: list[Tag] = []  # of the first pass
        self.returned: list[Any] = []  # by each traced mode
        self.modes: dict[str, Any] = {}  # the modes in which the model runs, with their examples
        self.traced: dict[str, Tracer] = {}  # those of them that had to be traced
        self._alike = False  # whether the first pass says what every mode does

    def run(self, mode: str, example: Any) -> None:
        """Trace one mode, "eval" or "train"; what it returns stays as large as it is.

        Where no code but that of torch's own layers asks for the mode, the second mode is not traced: their rules
        hold in both. In training a batch of one may be too small for batch norms, and is doubled then.
        """
        if mode == "train" and self._needs_two():
            example = doubled(example)
        if not self._alike:
            self._trace(mode, example)
        self.modes[mode] = example

    def _trace(self, mode: str, example: Any) -> None:
        self.bare.train(mode == "train")
        with asking_for_the_mode() as asked:
            try:
                traced, output = tracer.run(self.bare, example, self.layouts, integers=self.integers)
            except tracer.DataDependentError:
                raise
            except Exception:  # code may insist on plain integers: then none of its integers follow
                traced, output = tracer.run(self.bare, example, self.layouts, self.integers, terms=False)
        self._alike = all(map(is_torchs, asked)) and not any(map(_sets_mode, self.bare.modules()))
        self.returned.append(output)
        found = self._chosen_of(output)
        for op, (number, layout) in [(op, op.unread) for op in traced.ops if op.unread is not None]:
            tag = op.results[number]
            if tag is not None and (tag.met or tag in found):
                axes.fix(layout, op)
        for tag in found:
            for layout in (*tag.dims, *([] if tag.places is None else [tag.places])):
                axes.fix(layout, "an output of the model")
        self.met |= {
            name
            for name, tensor in (skeleton.named_tensors(self.bare) | kept_tensors(self.bare)).items()
            if (tag := tag_of(tensor)) is not None and tag.met
        }
        self._solve(traced)
        if traced.origins is not None:
            self.read |= traced.origins.places
        self.outputs = self.outputs or found
        self.traced[mode] = traced

    def _chosen_of(self, output: Any) -> list[Tag]:
        """The outputs that count among what a model returned."""
        found = [tag for tag in map(tag_of, select_outputs(output, self.chosen)) if tag is not None]
        if not found:
            raise TraceError("no output of the model depends on its parameters and inputs.")
        return found

    def as_called(self, bare: nn.Module) -> bool:
        """Trace the first mode once more, after the check, with the experts of mixtures computed in another way.

        The axes of experts are known by now, and this pass does not fix them (see experts.py). It says what the graph
        is to tell of the rest: the operators and their costs, the roles of weights, and of which numbers the widths
        must be multiples.

        bare: A skeleton of the model. Returns whether the graph is to tell that; not if this way fails, or asks the
        data which experts there are.
        """
        mode, before = next(iter(self.traced.items()))
        picked = {a for each in self.traced.values() for op in each.ops for a in axes.leaves(op.places or 1)}
        for axis in picked:
            axis.settled = True
        try:
            bare.train(mode == "train")
            traced, output = tracer.run(bare, self.modes[mode], self.layouts, Integers(bare))
            found = self._chosen_of(output)
        except Exception:  # any error of the user's code
            return False
        if _count_reads(traced) > _count_reads(before):
            return False
        self._solve(traced)
        self.traced[mode], self.outputs = traced, found
        return True

    def _solve(self, traced: Tracer) -> None:
        """Find the layouts of the integers that a pass met, and fix the sizes that became numbers."""
        if traced.origins is None:
            return
        solver = Solver(self.known)
        noted = [Claim(*each) for each in traced.origins.noted]
        solver.solve(claims(traced.ops) + noted, traced.origins.journal)
        for op in traced.ops:
            for term in op.origins:
                solver.fix(term, f"{op} computes with a number made from this size")

    def _needs_two(self) -> bool:
        """Whether some batch norm has but one number for each channel."""
        norms = [op for each in self.traced.values() for op in each.ops if op.is_a(BATCH_NORM)]
        return any(prod(tag.shape[:1] + tag.shape[2:]) < 2 for op in norms for tag in op.writes()[:1])

    def check(self, name_axes: Callable[[], dict[str, Axis]]) -> None:
        """Run every traced mode at other widths, and fix what does not agree, until all agree.

        A mode that ran the same operators as the first is not run again: the code took the same way.

        Raises UserError if no mode returns an output that the user named.
        """
        check_paths(self.chosen, self.returned)
        first = next(iter(self.traced.values()))
        for mode, traced in self.traced.items():
            if traced is not first and same_way(first, traced):
                continue
            self.bare.train(mode == "train")
            check = Check(self.bare, self.modes[mode], traced, self.layouts, self.integers)
            check.agree(name_axes, self.attributes)

    def attributes(self) -> list[Attribute]:
        """The integers that follow an axis which may shrink."""
        return [Attribute(place, each) for place, each in self.known.items() if axes.can_shrink(each)]

    def settled(self) -> dict[Place, Layout]:
        """The layouts of all integers that the forward pass reads; those of which no operator says a size stay."""
        return {place: place.value for place in self.read} | self.known


def _count_reads(traced: Tracer) -> int:
    """The number of times that a pass read values off the data."""
    return sum(op.is_a(DATA_DEPENDENT) for op in traced.ops)


def doubled(example: Any) -> Any:
    """An example with each of its tensors twice along the batch, which all share."""
    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    if len({tensor.shape[:1] for tensor in tensors}) != 1 or not tensors[0].dim():
        return example
    return tree_map_only(torch.Tensor, lambda tensor: torch.cat([tensor, tensor]), example)


@contextmanager
def asking_for_the_mode() -> Iterator[list[nn.Module]]:
    """Collect the modules whose attribute `training` is read, in this thread; others may run models meanwhile."""
    asked: list[nn.Module] = []
    own = get_ident()

    def read(module: nn.Module) -> bool:
        if get_ident() == own:
            asked.append(module)
        return vars(module)["training"]

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    nn.Module.training = property(read, write)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield asked
    finally:
        del nn.Module.training


def _sets_mode(module: nn.Module) -> bool:
    """Whether a module sets the mode in its own way."""
    return type(module).train is not nn.Module.train
