"""The parts of a traced model that can be skipped, found from its operators and the calls of its modules.

A module can be skipped in one of two ways. A *residual* module returns its input plus something: its output has the
layout of an input, and a path leads from that input to the output through additions alone, through activations that
change nothing the second time (where the input went through the same one), and, if it ends with one, through norms of
sums. Skipped, it returns that input. A *branch* is a module whose output is added to a signal that it has read.
Skipped, it returns zeros. Nothing is known by the name of a class. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prunus.graph import axes
from prunus.graph.axes import Axis
from prunus.graph.calls import Argument, Call
from prunus.graph.names import lies_in
from prunus.graph.op import Op, Tag
from prunus.graph.operators import (
    ADDITION,
    COPY,
    DIVISION,
    LAYER_NORM,
    LIMIT,
    MAX_POOLING,
    MOVE,
    MULTIPLICATION,
    RMS_NORM,
    VIEW,
)

SUFFIX = ":depth"  # of the name of a block's axis, after that of its module
SAME_PLACES = ADDITION | COPY | VIEW | LIMIT  # on the way from the input of a residual module to its output
KEEPS_ZERO = COPY | MOVE | MULTIPLICATION | DIVISION  # on the way from a branch to the sum


@dataclass(frozen=True, eq=False)
class Block:
    """A module that can be skipped.

    Args:
        module: Its name.
        argument: The position or keyword of the input whose layout its output has.
        branch: Whether it returns zeros when it is skipped; otherwise that input.
        returns: For each item of the tuple that it returns, the argument that it is, or None; None for a tensor alone.
        place: The position of its output in that tuple.
        ended: Whether it ends with a norm of a sum, which is skipped with it.
        protected: Whether it stays unless it is named: the first and the last of the outermost blocks, and all in them.
        start: The number of its first operation.
        stop: The number of the first operation after it.
        input: The tag of the input.
        output: The tag of the output.
    """

    module: str
    argument: Argument
    branch: bool
    returns: tuple[Argument | None, ...] | None
    place: int
    ended: bool
    protected: bool
    start: int = field(repr=False)
    stop: int = field(repr=False)
    input: Tag = field(repr=False)
    output: Tag = field(repr=False)

    def __str__(self) -> str:
        returned = f"{'zeros like ' if self.branch else ''}its argument {self.argument!r}"
        ended = ", without the norm that it ends with" if self.ended else ""
        return f"the block {self.module}; skipped, it returns {returned}{ended}"

    @property
    def axis(self) -> str:
        """The name of its axis."""
        return self.module + SUFFIX

    def holds(self, name: str) -> bool:
        """Return whether a module, parameter or buffer of this name is the block, or in it."""
        return lies_in(name, self.module)

    def around(self, other: Block) -> bool:
        """Return whether another block lies in this one."""
        return self is not other and self.start <= other.start and other.stop <= self.stop

    def is_within(self, others: Iterable[Block]) -> bool:
        """Return whether this block is one of some, or lies in one."""
        return any(self is other or other.around(self) for other in others)

    def make_axis(self) -> Axis:
        """Make its axis, of one unit."""
        axis = Axis(1, self.axis)
        axis.kind = "depth"
        return axis


def find_blocks(
    ops: Sequence[Op],
    calls: Sequence[Call],
    outputs: Sequence[Tag],
    tensors: Mapping[Tag, str],
    shared: Sequence[Sequence[str]],
) -> tuple[dict[str, Block], dict[str, str]]:
    """Find the modules of a traced model that can be skipped.

    Args:
        ops: The operations of a pass.
        calls: The calls of its modules, in the order of their ends.
        outputs: The tags of what the model returns.
        tensors: The names of its parameters and buffers.
        shared: The modules and tensors that have several names.

    Returns:
        The blocks by the names of their axes, in the order in which they run, and for each other module in which
        something is multiplied, by its name, why it cannot be skipped.
    """
    return _Search(ops, calls, outputs, tensors, shared).run()


class _Search:
    """A trace, and what is asked of it to find blocks."""

    def __init__(
        self,
        ops: Sequence[Op],
        calls: Sequence[Call],
        outputs: Sequence[Tag],
        tensors: Mapping[Tag, str],
        shared: Sequence[Sequence[str]],
    ):
        self.ops, self.calls, self.tensors, self.shared = ops, calls, tensors, shared
        self.writer: dict[Tag, int] = {}
        self.readers: dict[Tag, list[int]] = {}
        for number, op in enumerate(ops):
            for tag in op.writes():
                self.writer[tag] = number
            for tag in op.reads():
                self.readers.setdefault(tag, []).append(number)
        for tag in outputs:
            self.readers.setdefault(tag, []).append(len(ops))  # the reader is the user
        self.products = [number for number, op in enumerate(ops) if op.macs]

    def run(self) -> tuple[dict[str, Block], dict[str, str]]:
        """Find the blocks, and the reasons why other modules are none."""
        reasons: dict[str, str] = {}
        found: list[Block] = []
        times: dict[str, int] = {}
        for call in self.calls:
            times[call.name] = times.get(call.name, 0) + 1
        for call in self.calls:
            if self.multiplied(call.start, call.stop):
                block = f"it is called {times[call.name]} times" if times[call.name] > 1 else self.block(call)
                if isinstance(block, Block):
                    found.append(block)
                else:
                    reasons[call.name] = block
        found = sorted(self.without_repeats(found, reasons), key=lambda block: (block.start, -block.stop))
        outermost = [block for block in found if not any(other.around(block) for other in found)]
        ends = [*outermost[:1], *outermost[-1:]]
        return {
            block.axis: replace(block, protected=any(block is end or end.around(block) for end in ends))
            for block in found
        }, reasons

    def multiplied(self, start: int, stop: int) -> set[int]:
        """The products among some operations."""
        return {number for number in self.products if start <= number < stop}

    def block(self, call: Call) -> Block | str:
        """The block that a call is, or why it is none."""
        outputs = call.outputs if isinstance(call.outputs, list) else [call.outputs]
        output = self.only_output(call)
        if output is None or output not in outputs:
            return "more than one result of it is used, or none that it returns"
        names = [names for names in self.shared if len({lies_in(name, call.name) for name in names}) > 1]
        if names:
            return f"{names[0][0]} and {names[0][1]} are the same"
        if any(
            lies_in(name, call.name) and self.used_outside(call, tag) for tag, name in self.tensors.items()
        ):
            return "a parameter of it is used outside of it"
        like = [place for place, tag in call.inputs.items() if _same_layout(tag, output)]
        if not like:
            return "no input of it has the layout of its output"
        residual = [(place, ended) for place in like for ended in self.path(call, call.inputs[place], output)]
        if not residual and not self.is_added(call, output):
            return "no input of it reaches its output through additions alone, and it adds to nothing that it reads"
        argument, ended = residual[0] if residual else (like[0], False)
        entry = call.inputs[argument]
        if wasted := self.wasted(call, None if not residual else entry):
            return f"{wasted} would be computed for nothing"
        back = {tag: place for place, tag in call.inputs.items()}
        returns = tuple(back.get(tag) if tag is not None else None for tag in outputs)
        place = outputs.index(output)
        if residual:
            returns = (*returns[:place], argument, *returns[place + 1 :])
        return Block(
            module=call.name,
            argument=argument,
            branch=not residual,
            returns=returns if isinstance(call.outputs, list) else None,
            place=place,
            ended=ended,
            protected=False,
            start=call.start,
            stop=call.stop,
            input=entry,
            output=output,
        )

    def used_outside(self, call: Call, tag: Tag) -> bool:
        return any(not call.start <= reader < call.stop for reader in self.readers.get(tag, ()))

    def only_output(self, call: Call) -> Tag | None:
        """The one result of a call that something after it reads."""
        found = [
            tag
            for op in self.ops[call.start : call.stop]
            for tag in op.writes()
            if self.readers.get(tag, (0,))[-1] >= call.stop
        ]
        return found[0] if len(found) == 1 else None

    # ------------------------------------------------------------------------------ residual modules
    def path(self, call: Call, entry: Tag, output: Tag) -> Iterator[bool]:
        """Whether a norm ends the path from an input to the output; nothing if there is no path."""
        seen: set[tuple[Tag, bool]] = set()
        waiting = [
            (output, True, False)
        ]  # a tensor, whether nothing but copies follows it, whether a norm does
        while waiting:
            tag, last, ended = waiting.pop()
            if tag is entry:
                yield ended
                return
            number = self.writer.get(tag, -1)
            if (tag, ended) in seen or not call.start <= number < call.stop:
                continue
            seen.add((tag, ended))
            op = self.ops[number]
            if op.is_a(LAYER_NORM | RMS_NORM):
                if (last or ended) and self.is_sum(call, op.reads()[0]):
                    waiting.append((op.reads()[0], False, True))
            elif op.is_a(SAME_PLACES) and (not op.is_a(LIMIT) or self.is_limited(entry, op)):
                waiting += [(each, last and op.is_a(COPY), ended) for each in _signals(op, tag)]

    def is_sum(self, call: Call, tag: Tag) -> bool:
        """Whether a tensor was added within a call."""
        number = self.writer.get(tag, -1)
        return call.start <= number and self.ops[number].is_a(ADDITION)

    def is_limited(self, tag: Tag, limit: Op) -> bool:
        """Whether a tensor went through the same activation, so that another time changes nothing."""
        while (number := self.writer.get(tag)) is not None:
            op = self.ops[number]
            if op.is_a(LIMIT):
                return _setting(op) == _setting(limit)
            if not op.is_a(COPY | MOVE | MAX_POOLING):
                return False
            tag = op.reads()[0]
        return False

    # -------------------------------------------------------------------------------------- branches
    def is_added(self, call: Call, output: Tag) -> bool:
        """Whether a result ends as an addend beside a signal from which the call's inputs were made."""
        tag, entered = output, list(call.inputs.values())
        while len(readers := self.readers.get(tag, ())) == 1 and readers[0] < len(self.ops):
            op = self.ops[readers[0]]
            written = op.writes()
            if len(written) != 1:
                return False
            if op.is_a(ADDITION):
                others = [each for each in op.reads() if each is not tag and _same_layout(each, written[0])]
                if any(self.is_made_from(entered, each) for other in others for each in self.addends(other)):
                    return True
            elif not op.is_a(KEEPS_ZERO) or (op.is_a(DIVISION) and op.reads()[0] is not tag):
                return False
            tag = written[0]
        return False

    def addends(self, tag: Tag) -> Iterator[Tag]:
        """A tensor, and what it is the sum of."""
        waiting = [tag]
        while waiting:
            tag = waiting.pop()
            yield tag
            number = self.writer.get(tag)
            if number is not None and self.ops[number].is_a(ADDITION | COPY):
                waiting += [each for each in self.ops[number].reads() if each.data]

    def is_made_from(self, made: Sequence[Tag], origin: Tag) -> bool:
        """Whether some tensors were computed from another."""
        first = self.writer.get(origin, -1)
        waiting, seen = list(made), set()
        while waiting:
            tag = waiting.pop()
            if tag is origin:
                return True
            number = self.writer.get(tag, -1)
            if number > first and number not in seen:
                seen.add(number)
                waiting += self.ops[number].reads()
        return False

    # ----------------------------------------------------------------------------------------- costs
    def wasted(self, call: Call, stays: Tag | None) -> str:
        """The product whose result only this call reads, so that it would be computed for nothing; "" if there is none.

        stays: an input that is read although the call is skipped.
        """
        gone = set(range(call.start, call.stop))
        waiting = [
            tag
            for number in gone
            for tag in self.ops[number].reads()
            if tag is not stays and self.writer.get(tag, call.stop) < call.start
        ]
        while waiting:
            tag = waiting.pop()
            number = self.writer.get(tag)
            if number is None or number in gone or tag is stays:
                continue
            op = self.ops[number]
            if all(reader in gone for each in op.writes() for reader in self.readers.get(each, ())):
                if op.macs:
                    return str(op)
                gone.add(number)
                waiting += op.reads()
        return ""

    def without_repeats(self, found: list[Block], reasons: dict[str, str]) -> Iterator[Block]:
        """Yield the blocks that skip more than others do; for each other block, add the reason.

        A chain of residual modules gives way to its links, if these make all of its products. A branch gives way to a
        block around it that makes no other products.
        """
        kept: list[Block] = []
        for block in sorted(found, key=lambda block: block.stop - block.start):
            own = self.multiplied(block.start, block.stop)
            inside = [other for other in kept if block.around(other)]
            if not block.branch and own == self.together(each for each in inside if not each.branch):
                reasons[block.module] = f"it is no more than {', '.join(each.module for each in inside[:3])}"
            else:
                kept.append(block)
        for block in kept:
            own = self.multiplied(block.start, block.stop)
            outside = [other for other in kept if other.around(block)]
            same = [other for other in outside if self.multiplied(other.start, other.stop) == own]
            if block.branch and same:
                reasons[block.module] = f"{same[0].module} is skipped in its place"
            else:
                yield block

    def together(self, blocks: Iterable[Block]) -> set[int]:
        """The products in some blocks."""
        return {number for block in blocks for number in self.multiplied(block.start, block.stop)}


def _signals(op: Op, result: Tag) -> list[Tag]:
    """The tensors that reach a result as they are: those that are added, at its size and once."""
    if not op.is_a(ADDITION):
        return op.reads()[:1]
    once = "sub" not in op.name and op.argument("alpha", 1) == 1
    signs = (False, True) if op.name.startswith("rsub") else (True, once)
    given = op.argument("self", None), op.argument("other", None)
    return [
        tag
        for tag, as_it_is in zip(given, signs, strict=True)
        if as_it_is and isinstance(tag, Tag) and tag.data and _same_layout(tag, result)
    ]


def _same_layout(one: Tag, other: Tag) -> bool:
    """Whether two tensors have the same dimensions, of the same axes."""
    return len(one.dims) == len(other.dims) and all(
        axes.normal(a) == axes.normal(b) for a, b in zip(one.dims, other.dims, strict=True)
    )


def _setting(op: Op) -> tuple[object, ...]:
    """The name of an activation, and its numbers."""
    return op.name.removesuffix("_"), *(value for value in op.values() if not isinstance(value, Tag))
