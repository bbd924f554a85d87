"""Timing single operators, in torch or in onnxruntime.

torch: each is called on tensors of ones, all in turns. onnxruntime rearranges and fuses operators, so many are exported
side by side into one file, and onnxruntime's own profile says how long each took. Source: ours.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from prunus.errors import PrunusError
from prunus.export import Call, programs
from prunus.files import Amount, read_json
from prunus.graph import Untracked, operators, skeleton
from prunus.latency import clock
from prunus.latency.operators import Operator, Sizes, is_constant, size_at

ROUNDS = (5, 100)
CHUNK, CHUNK_BYTES = 64, 2**28  # most operators, and bytes that they access, in one file for onnxruntime
CONSTANTS = (torch.int64, torch.bool)  # types to try for constant inputs, after the model's own


@dataclass(frozen=True)
class Like:
    """The kind of a model's tensors; operators are measured on tensors of the same kind."""

    device: torch.device
    dtype: torch.dtype
    channels_last: bool

    @classmethod
    def of(cls, model: nn.Module) -> "Like":
        """Read the kind off the largest weight; channels_last if any 4-dimensional weight is."""
        tensors = [t for t in skeleton.named_tensors(model).values() if t.is_floating_point()]
        largest = max(tensors, key=Tensor.numel, default=torch.zeros(()))
        last = any(
            t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
            for t in tensors
        )
        return cls(largest.device, largest.dtype, last)


class Runtime:
    """A program that runs models, here torch, and its clock. Subclasses are other programs, and clocks for tests."""

    name = "torch"
    seconds_per_point = 5e-3  # to prepare one operator
    rounds = ROUNDS[0] + clock.WARMUP  # the least number of times that an operator runs

    def operators(
        self, wanted: Sequence[tuple[Operator, Sizes]], like: Like, seconds: float, step: Callable
    ) -> list[float | None]:
        """Milliseconds of each operator at its sizes; None if it cannot run alone.

        wanted: operators with sizes. like: the kind of tensors. seconds: how long to measure. step: counts seconds.
        """
        pool, calls = _Pool(like), {}
        for number, (operator, sizes) in enumerate(wanted):
            call = _torch_call(operator, sizes, pool)
            if call is not None:
                calls[str(number)] = call
        # One call at a time, because in a network other operators run in between and change the caches.
        times = clock.take_turns(calls, seconds, step, rounds=ROUNDS, least_ms=0)
        return [
            _lower_quartile(times[n]) if (n := str(number)) in times else None
            for number in range(len(wanted))
        ]

    def prepare(self, model: nn.Module, example: Any) -> Call:
        """Prepare a call that runs the model on the example."""
        return programs.PROGRAMS[self.name](model, example)

    def race(self, calls: Sequence[Call], seconds: float, step: Callable) -> list[list[float]]:
        """Time calls in turns: the milliseconds of each, in as many rounds as `seconds` allow."""
        named = {str(number): call for number, call in enumerate(calls)}
        times = clock.take_turns(named, seconds, step, rounds=(7, 400))
        return [times[name] for name in named]


class Onnxruntime(Runtime):
    """onnxruntime: operators are exported many at a time, and its own profile says how long each took."""

    name = "onnxruntime"
    seconds_per_point = 0.06
    rounds = 20

    def operators(
        self, wanted: Sequence[tuple[Operator, Sizes]], like: Like, seconds: float, step: Callable
    ) -> list[float | None]:
        """Time operators; see Runtime."""
        like = Like(torch.device("cpu"), like.dtype, False)
        tick, found = clock.Ticker(step, seconds), {}
        waiting = list(_chunks(wanted))
        while waiting:
            chunk = waiting.pop(0)
            share = seconds * len(chunk) / len(wanted) / 2  # the other half is for exporting
            try:
                found |= _profile([wanted[number] for number in chunk], chunk, like, share)
            except (
                PrunusError
            ):  # an operator is not in ONNX: halve the chunk until it is found, then leave it out
                half = len(chunk) // 2
                waiting = [chunk[:half], chunk[half:], *waiting] if half else waiting
            tick()
        return [found.get(number) for number in range(len(wanted))]


def _lower_quartile(times: list[float]) -> float:
    """The lower quartile, because other programs can only make a short call longer."""
    return sorted(times)[len(times) // 4]


class _Pool:
    """Tensors that share memory, because one operator at many sizes would fill it."""

    def __init__(self, like: Like):
        self.like = like
        self.buffers: dict[tuple, Tensor] = {}

    def tensor(
        self, operator: Operator, constant: torch.dtype, position: int, shape: Sizes, tag: Any
    ) -> Tensor:
        """A tensor of ones; of zeros for in-place operators, which would otherwise end, after many runs, in denormal
        numbers, on which processors are slow. constant: the type of tensors that depend on nothing, such as masks."""
        dtype = constant if isinstance(tag, Untracked) else self.like.dtype
        in_place = operator.op.func._schema.is_mutable
        name, count = (operator.op.name if in_place else "", position, dtype), prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < count:
            make = torch.zeros if in_place or not dtype.is_floating_point else torch.ones
            more = 2 * self.buffers[name].numel() if name in self.buffers else 0
            self.buffers[name] = make(max(count, more), dtype=dtype, device=self.like.device)
        flat = self.buffers[name][:count]
        if self.like.channels_last and len(shape) == 4:
            n, c, h, w = shape
            return flat.view(n, h, w, c).permute(0, 3, 1, 2)
        return flat.view(shape)


def _torch_call(operator: Operator, sizes: Sizes, pool: _Pool) -> Call | None:
    for constant in (pool.like.dtype, *CONSTANTS):
        args, kwargs = operator.build(sizes, partial(pool.tensor, operator, constant))

        def call(args: list = args, kwargs: dict = kwargs) -> None:
            with torch.no_grad():
                operator.op.func(*args, **kwargs)
            programs.synchronize(pool.like.device)

        try:
            call()
            return call
        except Exception:  # an operator may raise anything for sizes or types that it does not take
            continue
    return None


def _chunks(wanted: Sequence[tuple[Operator, Sizes]]) -> Iterator[list[int]]:
    """Group operators to export together: every export has a fixed cost, and holds all its inputs in memory."""
    chunk, held = [], 0
    for number, (operator, sizes) in enumerate(wanted):
        size = partial(size_at, sizes=dict(zip(operator.variables, sizes, strict=True)))
        bytes_here = 4 * sum(prod(map(size, tag.dims)) for tag in operator.op.tags())
        if chunk and (held + bytes_here > CHUNK_BYTES or len(chunk) == CHUNK):
            yield chunk
            chunk, held = [], 0
        chunk.append(number)
        held += bytes_here
    if chunk:
        yield chunk


class _SideBySide(nn.Module):
    """Operators in one module, each on its own inputs; constants of the model are constants here."""

    def __init__(self, wanted: Sequence[tuple[Operator, Sizes]], like: Like):
        super().__init__()
        self.inputs: list[Tensor] = []
        self.calls: list[tuple[Callable, list, dict]] = []
        generator = torch.Generator().manual_seed(0)
        kinds = {operator.key: _constant_type(operator, sizes, like) for operator, sizes in reversed(wanted)}
        for operator, sizes in wanted:
            kind = kinds[operator.key]

            def tensor(
                position: int, shape: Sizes, tag: Any, kind: torch.dtype = kind
            ) -> "_Constant | _Input":
                if isinstance(tag, Untracked) and not kind.is_floating_point:
                    value = torch.zeros(shape, dtype=kind)
                else:  # not ones, because onnxruntime removes multiplications by one
                    value = torch.rand(shape, generator=generator).add(0.5).to(like.dtype)
                if is_constant(tag):
                    name = f"constant{len(self._buffers)}"
                    self.register_buffer(name, value)
                    return _Constant(name)
                self.inputs.append(value)
                return _Input(len(self.inputs) - 1)

            self.calls.append((operators.functional(operator.op.func), *operator.build(sizes, tensor)))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The first result of each operator."""

        def fill_in(value: Any) -> Any:
            if isinstance(value, _Input):
                return inputs[value.index]
            if isinstance(value, _Constant):
                return getattr(self, value.name)
            return [fill_in(each) for each in value] if isinstance(value, list) else value

        results = [
            func(*map(fill_in, args), **{name: fill_in(v) for name, v in kwargs.items()})
            for func, args, kwargs in self.calls
        ]
        return tuple(each[0] if isinstance(each, (tuple, list)) else each for each in results)


@dataclass(frozen=True)
class _Input:
    index: int


@dataclass(frozen=True)
class _Constant:
    name: str


def _constant_type(operator: Operator, sizes: Sizes, like: Like) -> torch.dtype:
    """Find the type of the tensors that depend on nothing. Raises PrunusError if the operator runs with no type."""
    for kind in (like.dtype, *CONSTANTS):
        pool = _Pool(like)
        args, kwargs = operator.build(sizes, partial(pool.tensor, operator, kind))
        try:
            operator.op.func(*args, **kwargs)
            return kind
        except Exception:  # see _torch_call
            continue
    raise PrunusError(f"{operator.key} cannot run alone.")


def _profile(
    wanted: Sequence[tuple[Operator, Sizes]], numbers: Sequence[int], like: Like, seconds: float
) -> dict[int, float]:
    """Milliseconds by number; 0 for operators that onnxruntime removes."""
    from onnx.inliner import inline_selected_functions

    module = _SideBySide(wanted, like).eval()
    onnx = programs.to_onnx(programs.export_program(module, tuple(module.inputs))).model_proto
    _name_nodes(onnx.graph)
    times = _times(onnx, module.inputs, seconds)
    lost = {n.op_type for n in onnx.graph.node if "@" in n.name and int(n.name.split("@")[1]) not in times}
    if lost:  # onnxruntime replaces operators that it lacks by unnamed ones, so replace them here, with names
        inner = inline_selected_functions(onnx, [("", kind) for kind in lost], inline_schema_functions=True)
        _name_nodes(inner.graph)
        times |= _times(inner, module.inputs, seconds)
    return {number: times.get(place, 0.0) for place, number in enumerate(numbers)}


class Event(msgspec.Struct, frozen=True):
    """An event in a profile of onnxruntime. dur: microseconds."""

    name: str
    dur: Amount = 0.0


def _times(onnx: Any, inputs: Sequence[Tensor], seconds: float) -> dict[int, float]:
    """Milliseconds by the number of the output to which operators lead."""
    with tempfile.TemporaryDirectory() as folder:
        session = programs.open_session(onnx.SerializeToString(), profile=str(Path(folder) / "profile"))
        names = [each.name for each in session.get_inputs()]
        run = partial(session.run, None, {n: value.numpy() for n, value in zip(names, inputs, strict=True)})
        clock.take_turns({"": run}, seconds, lambda done: None, rounds=(20, 200), least_ms=0)
        events = read_json(Path(session.end_profiling()), list[Event])
    found: dict[int, dict[str, list[float]]] = {}
    for event in events:
        which = re.search(r"@(\d+)@", event.name)
        if which and event.name.endswith("kernel_time"):
            nodes = found.setdefault(int(which[1]), {})
            nodes.setdefault(event.name, []).append(event.dur + 0.5)  # microseconds, rounded down
    return {place: sum(map(_mean_of_lower_half, nodes.values())) / 1e3 for place, nodes in found.items()}


def _mean_of_lower_half(values: list[float]) -> float:
    """The mean of the lower half without the first runs: as `_lower_quartile`, but finer than whole microseconds."""
    half = sorted(values[clock.WARMUP :])
    half = half[: len(half) // 2]
    return sum(half) / len(half)


def _name_nodes(onnx: Any) -> None:
    """Put the number of the output to which a node leads, as @3@, into the names of the node and its results:
    onnxruntime names the nodes that it makes of it after the one or the other."""
    makers, names = {name: node for node in onnx.node for name in node.output}, {}
    for number, output in enumerate(onnx.output):
        waiting = [output.name]
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and not node.name.startswith("@"):
                node.name = f"@{number}@{len(names)}"  # unique
                names |= {name: name if "@" in name else f"@{number}@{name}" for name in node.output}
                waiting += node.input
    for node in onnx.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for output in onnx.output:
        output.name = names.get(output.name, output.name)
    del onnx.value_info[:]  # it has the old names; onnxruntime infers it


RUNTIMES = {"torch": Runtime, "onnxruntime": Onnxruntime}
