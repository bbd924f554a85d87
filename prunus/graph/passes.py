"""The passes over one skeleton, one for each mode, and what they say together.

All of them unify the layouts of the same parameters, and find the layouts of the same integers. Then each is checked at
other widths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from prunus.errors import TraceError
from prunus.graph import axes, skeleton, tracer
from prunus.graph.attributes import Attribute, Integers
from prunus.graph.axes import Axis, Layout
from prunus.graph.check import Check
from prunus.graph.op import Tag, tag_of
from prunus.graph.sizes import Place
from prunus.graph.solve import Claim, Solver, claims
from prunus.graph.tracer import Tracer


class Passes:
    """Runs a skeleton in one mode after the other.

    Args:
        bare: The skeleton.
        layouts: The layouts of its parameters and buffers, refined by each pass.
    """

    def __init__(self, bare: nn.Module, layouts: dict[str, list[Layout]]):
        self.bare, self.layouts = bare, layouts
        self.integers = Integers(bare)
        self.known: dict[Place, Layout] = {}
        self.met: set[str] = set()  # the parameters and buffers that an operator read
        self.outputs: list[Tag] = []  # of the first pass
        self.traced: dict[str, tuple[Any, Tracer]] = {}

    def run(self, mode: str, example: Any) -> Tracer:
        """Trace one mode, "eval" or "train"; what it returns stays as large as it is."""
        self.bare.train(mode == "train")
        traced, output = tracer.run(self.bare, example, self.layouts, integers=self.integers)
        found = [tag for tag in map(tag_of, tracer.output_tensors(output)) if tag is not None]
        if not found:
            raise TraceError("no output of the model depends on its parameters and inputs.")
        for tag in found:
            for layout in tag.dims:
                axes.fix(layout, "an output of the model")
        self.met |= {
            name
            for name, tensor in skeleton.named_tensors(self.bare).items()
            if (tag := tag_of(tensor)) is not None and tag.met
        }
        if traced.origins is not None:
            solver = Solver(self.known)
            noted = [Claim(*each) for each in traced.origins.noted]
            solver.solve(claims(traced.ops) + noted, traced.origins.journal.equal)
            for op in traced.ops:
                for term in op.origins:
                    solver.fix(term, f"{op} computes with a number made from this size")
        self.outputs = self.outputs or found
        self.traced[mode] = example, traced
        return traced

    def check(self, name_axes: Callable[[], dict[str, Axis]]) -> None:
        """Run every mode at other widths, and fix what does not agree, until all agree."""
        for mode, (example, traced) in self.traced.items():
            self.bare.train(mode == "train")
            Check(self.bare, example, traced, self.layouts, self.integers).agree(name_axes, self.attributes)

    def attributes(self) -> list[Attribute]:
        """The integers that follow an axis which may shrink."""
        return [Attribute(place, each) for place, each in self.known.items() if any(axes.leaves(each))]
