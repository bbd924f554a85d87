"""Where tensors come from: the operators of a forward pass that lie behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prunus.graph.op import Op, Tag


class Behind(NamedTuple):
    """The tensors and operators from which a tensor is made, back to the last products.

    Args:
        tags: The ids of the tensors, its own among them.
        ops: The operators that made them, other than products, in the order in which they ran.
        products: The products that made the first of them.
    """

    tags: set[int]
    ops: list[Op]
    products: list[Op]


class Flow:
    """The operators of a forward pass, and which of them made which tensor.

    Args:
        ops: The operators, in the order in which they ran.
    """

    def __init__(self, ops: Sequence[Op]):
        self.ops = ops
        self._makers: dict[int, int] = {}  # tag -> the number of the operator that made it
        for number, op in enumerate(ops):
            for tag in op.writes():
                self._makers.setdefault(id(tag), number)

    def behind(self, tag: Tag) -> Behind:
        """Go back from a tensor to the products that it is made of."""
        tags, numbers = self._back(tag, first=0, through_products=False)
        ops = [self.ops[number] for number in sorted(numbers)]
        return Behind(tags, [op for op in ops if not op.contracts], [op for op in ops if op.contracts])

    def between(self, source: Tag, tag: Tag) -> set[int]:
        """Find the way from a tensor to another.

        Args:
            source: The earlier tensor.
            tag: The later one.

        Returns:
            The numbers of the operators that made the later one since the earlier was there; none if it is not made of
            that, or without a product.
        """
        tags, numbers = self._back(tag, first=self._makers.get(id(source), -1) + 1, through_products=True)
        multiplies = any(self.ops[number].contracts for number in numbers)
        return numbers if multiplies and id(source) in tags else set()

    def _back(self, tag: Tag, first: int, through_products: bool) -> tuple[set[int], set[int]]:
        """The tensors and the operators, from number `first` on, that a tensor is made of."""
        tags, numbers, todo = {id(tag)}, set[int](), [tag]
        while todo:
            number = self._makers.get(id(todo.pop()), -1)
            if number < first or number in numbers:
                continue
            numbers.add(number)
            if through_products or not self.ops[number].contracts:
                fresh = [each for each in self.ops[number].reads() if id(each) not in tags]
                tags |= {id(each) for each in fresh}
                todo += fresh
        return tags, numbers
