"""The module that stands in the place of a block which is skipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import torch
from torch import nn

from prunus.graph import Argument, Block, given_argument


class Skip(msgspec.Struct, frozen=True):
    """What a block returns when it is skipped; plain data.

    Args:
        module: The name of the block's module in the original.
        argument: The position or keyword of its input.
        branch: Whether it returns zeros like that input, not the input itself.
        returns: For each item of the tuple that it returns, the argument that it is, or None; None for a tensor alone.
        place: The position of its output in that tuple.
    """

    module: str
    argument: Argument
    branch: bool = False
    returns: list[Argument | None] | None = None
    place: int = 0

    @classmethod
    def of(cls, block: Block) -> Skip:
        """Return what a block of a graph returns when it is skipped."""
        returns = None if block.returns is None else list(block.returns)
        return cls(block.module, block.argument, block.branch, returns, block.place)


class Skipped(nn.Module):
    """A block that is skipped: it takes the same arguments, and returns its input, or zeros like it.

    Args:
        skip: What it returns.
        block: The module in whose place it stands; its numbers and words that other modules may read are kept.
    """

    def __init__(self, skip: Skip, block: nn.Module):
        super().__init__()
        own = vars(self).keys()
        for name, value in vars(block).items():
            if name not in own and isinstance(value, (bool, int, float, str)):
                setattr(self, name, value)
        self.skip = skip

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is left of the block's result."""
        skip = self.skip

        def given(place: Argument | None) -> Any:
            return None if place is None else given_argument(place, args, kwargs)

        output = given(skip.argument)
        output = torch.zeros_like(output) if skip.branch else output
        if skip.returns is None:
            return output
        return tuple(
            output if place == skip.place else given(each) for place, each in enumerate(skip.returns)
        )

    def extra_repr(self) -> str:
        """Say what it returns."""
        return f"returns {'zeros like ' if self.skip.branch else ''}argument {self.skip.argument!r}"


def put_skipped(model: nn.Module, skips: Iterable[Skip]) -> None:
    """Put a `Skipped` in the place of each block of a model, in place.

    Args:
        model: The model.
        skips: The blocks.
    """
    for skip in skips:
        parent, _, name = skip.module.rpartition(".")
        model.get_submodule(parent)._modules[name] = Skipped(skip, model.get_submodule(skip.module))
