"""The blocks of a graph by the names of their axes, searched for when they are first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from prunus.errors import UserError, unknown
from prunus.graph.axes import Axis
from prunus.graph.blocks import SUFFIX, Block, find_blocks
from prunus.graph.calls import Call
from prunus.graph.op import Op, Tag
from prunus.graph.places import Keep
from prunus.graph.words import shorten


class Blocks(Mapping[str, Block]):
    """The modules that can be skipped, by the names of their axes, in the order in which they run.

    Args:
        ops: The operations of a pass.
        calls: The calls of its modules, in the order of their ends.
        outputs: The tags of what the model returns.
        tensors: The names of its parameters and buffers by their tags.
        shared: The modules and tensors that have several names.
        names: The names of the parameters, buffers and kept tensors of the model.
    """

    def __init__(
        self,
        ops: Sequence[Op],
        calls: Sequence[Call],
        outputs: Sequence[Tag],
        tensors: Mapping[Tag, str],
        shared: Sequence[Sequence[str]],
        names: Iterable[str],
    ):
        self._pass, self._names = (ops, calls, outputs, tensors, shared), list(names)

    @cached_property
    def _found(self) -> tuple[dict[str, Block], dict[str, str]]:
        return find_blocks(*self._pass)

    def __getitem__(self, axis: str) -> Block:
        return self._found[0][axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found[0])

    def __len__(self) -> int:
        return len(self._found[0])

    @property
    def unskippable(self) -> dict[str, str]:
        """Why the other modules in which something is multiplied cannot be skipped, by their names."""
        return self._found[1]

    @cached_property
    def axes(self) -> dict[str, Axis]:
        """Their axes, of one unit each."""
        return {name: block.make_axis() for name, block in self.items()}

    def axis(self, name: str) -> Axis:
        """Look up the axis of a block.

        Args:
            name: Its name, such as "layers.3:depth".

        Returns:
            The axis.

        Raises:
            UserError: There is no such block; of a module that cannot be skipped, the message says why.
        """
        module = name.removesuffix(SUFFIX)
        if module in self.unskippable:
            raise UserError(f"{module} cannot be skipped: {self.unskippable[module]}.")
        if name not in self:
            raise unknown("block", name, self)
        return self.axes[name]

    def skipped(self, keep: Keep) -> list[Block]:
        """List the blocks that a keep leaves out, but for those within others that it leaves out.

        Args:
            keep: The indices that stay, per axis.

        Returns:
            The blocks, in the order in which they run.
        """
        named = [name for name in keep if name.endswith(SUFFIX) and not len(keep[name])]
        gone = sorted((self[name] for name in named), key=lambda block: (block.start, -block.stop))
        return [block for block in gone if not any(other.around(block) for other in gone)]

    def lost(self, keep: Keep) -> set[str]:
        """Name the parameters, buffers and kept tensors of the blocks that a keep leaves out.

        Args:
            keep: The indices that stay, per axis.

        Returns:
            Their names.
        """
        skipped = self.skipped(keep)
        return {name for block in skipped for name in self._names if block.holds(name)}

    def check(self, keep: Keep) -> None:
        """Check that a keep leaves some block, if it leaves any out.

        Args:
            keep: The indices that stay, per axis.

        Raises:
            UserError: It leaves out all of them.
        """
        if self.leaves_none(keep):
            modules = shorten([each.module for each in self.skipped(keep)])
            raise UserError(f"keep skips all blocks of the model ({modules}); let one stay.")

    def leaves_none(self, keep: Keep) -> bool:
        """Return whether a keep leaves all blocks out.

        Args:
            keep: The indices that stay, per axis.

        Returns:
            Whether each block is left out, or lies in one that is.
        """
        skipped = self.skipped(keep)
        return bool(skipped) and all(block.is_within(skipped) for block in self.values())
