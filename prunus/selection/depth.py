"""Blocks beside axes: the costs that go when one is skipped, and the graph that has those which scores name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from prunus.graph import Block, Graph, Layout, Storage, Tag

Term = tuple[
    int, Sequence[Layout], tuple[str, ...]
]  # a number, the layouts and the blocks that it is multiplied by


@dataclass(frozen=True)
class Longer:
    """An input that lives on because the block that reads it returns it.

    Args:
        first: The number of the first operation for which it would have been freed.
        last: The number of the last operation that reads what the block returns.
        terms: Its bytes, if that block is skipped, otherwise 0.
    """

    first: int
    last: int
    terms: tuple[Term, ...]


def is_deep(graph: Graph) -> bool:
    """Return whether the axes of a graph include its blocks (`Graph.deep`)."""
    return any(axis.kind == "depth" for axis in graph.axes.values())


class Depth:
    """The blocks of a graph, by what lies in them: operations, tensors and allocations.

    Args:
        graph: The graph; only one with axes for its blocks (`Graph.deep`) has any here.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.blocks: list[Block] = list(graph.blocks.values()) if is_deep(graph) else []

    def at(self, number: int) -> tuple[str, ...]:
        """Name the blocks in which an operation runs."""
        return tuple(each.axis for each in self.blocks if each.start <= number < each.stop)

    def writing(self, tag: Tag) -> tuple[str, ...]:
        """Name the blocks in which a tensor is computed."""
        return self.at(self._written.get(tag, -1))

    @cached_property
    def _written(self) -> dict[Tag, int]:
        """The operation that writes each tensor."""
        ops = enumerate(self.graph.ops if self.blocks else ())
        return {tag: number for number, op in ops for tag in op.writes()}

    def holding(self, tensor: str) -> tuple[str, ...]:
        """Name the blocks in which a parameter is."""
        return tuple(each.axis for each in self.blocks if each.holds(tensor))

    def making(self, storage: Storage) -> tuple[str, ...]:
        """Name the blocks without which something is not allocated: a skipped branch still returns zeros."""
        made = self._made.get(storage, -1)
        return tuple(
            each.axis
            for each in self.blocks
            if each.start <= made < each.stop and not (each.branch and each.output.storage is storage)
        )

    @cached_property
    def _made(self) -> dict[Storage, int]:
        """The operation in which each allocation is made; inputs of the model are in none."""
        found: dict[Storage, int] = {}
        if self.blocks:
            for number, op in enumerate(self.graph.ops):
                for tag in op.writes():
                    if tag.storage is not None and tag.storage.born == number:
                        found.setdefault(tag.storage, number)
        return found

    @cached_property
    def longer(self) -> list[Longer]:
        """The inputs that live longer where a block is skipped."""
        found: list[Longer] = []
        for each in self.blocks:
            own, returned = each.input.storage, each.output.storage
            if each.branch or own is None or own is returned or returned.died <= own.died:
                continue
            around = tuple(other.axis for other in self.blocks if other.around(each))
            terms: tuple[Term, ...] = (
                (own.bytes_per_element, own.dims, around),
                (-own.bytes_per_element, own.dims, (*around, each.axis)),
            )
            found.append(Longer(own.died + 1, returned.died, terms))
        return found


def with_blocks(graph: Graph, scores: Mapping[str, Tensor]) -> tuple[Graph, Mapping[str, Tensor], list[str]]:
    """Return the graph whose axes include its blocks, if scores name some, and the axes that stay without a score.

    Args:
        graph: The graph of the model.
        scores: axis -> float tensor (size,).

    Returns:
        The graph, the scores, and the axes that stay: blocks without a score, and all others if blocks alone have one.
    """
    if scores.keys() <= graph.axes.keys() or not scores.keys() & graph.blocks.keys():
        return graph, scores, []
    deep = graph.deep
    units = [name for name in deep.axes if name not in graph.blocks]
    unscored = [name for name in graph.blocks if name not in scores]
    return deep, scores, unscored + ([] if scores.keys() & set(units) else units)
