"""The parts of scores that are measured on data: the inputs of products, and how often activations are on."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.errors import UserError
from prunus.graph import Graph, Tag, kept_tensors, make_skeleton, named_tensors, operators, quiet_forward
from prunus.inputs import call
from prunus.sparse.neighbours import Flow, memory

See = Callable[[Any, tuple[Any, ...], Any], Tensor | None]  # of an operator, its arguments and its output


class _Watch(TorchDispatchMode):
    """Adds up the tensors that `see` returns, by the order in which it returns them; None is left out."""

    def __init__(self, see: See):
        super().__init__()
        self.see, self.at = see, 0
        self.sums: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        seen = self.see(func, args, out)
        if seen is not None:
            self.sums[self.at : self.at + 1] = [
                seen if self.at >= len(self.sums) else self.sums[self.at] + seen
            ]
            self.at += 1
        return out


def _measure(model: nn.Module, batches: Iterable[Any], see: See, expected: int, what: str) -> list[Tensor]:
    """The means over batches of the tensors that `see` returns in one pass; `expected` is their number."""
    watch, count = _Watch(see), 0
    for inputs, _ in batches:
        watch.at, count = 0, count + 1
        with quiet_forward(), watch:
            call(model, inputs)
        if watch.at != expected:
            raise UserError(
                f"the model ran {watch.at} {what}, but {expected} when it was traced; trace it again."
            )
    if not count:
        raise UserError("expected at least one batch to score with, but there is no batch.")
    return [total / count for total in watch.sums]


def measure_inputs(model: nn.Module, graph: Graph, batches: Iterable[Any]) -> dict[int, Tensor]:
    """The mean square (inputs,) of the activation that enters each product with a parameter, by place."""
    bare = make_skeleton(model, real=True)
    parameters = {memory(parameter) for parameter in bare.parameters() if parameter.dim() > 1}
    flow = Flow(graph)
    flow.run(kept_tensors(bare) | named_tensors(bare))
    sites = [site for site in flow.sites if not site.computed]
    places = [site.place for site in sites if not graph.ops[site.place].is_a(operators.EMBEDDING)]

    def see(func: Any, args: tuple[Any, ...], out: Any) -> Tensor | None:
        if not operators.is_a(func, operators.WEIGHTED):
            return None
        a, b = operators.operands(func, args)
        first = memory(a) in parameters
        if first == (memory(b) in parameters):
            return None
        channels = 1 if operators.is_a(func, operators.CONVOLUTION) else -1
        w, x, dim = (a, b, -2 if b.dim() > 1 else -1) if first else (b, a, channels)
        square = x.movedim(dim, -1).float().square()
        if operators.is_a(func, operators.BATCHED) and w.stride(
            0
        ):  # one matrix, expanded for a batch of them
            return square.mean(1)
        return square.flatten(0, -2).mean(0)

    return dict(zip(places, _measure(bare, batches, see, len(places), "products with weights"), strict=True))


def measure_activity(model: nn.Module, graph: Graph, batches: Iterable[Any]) -> dict[int, Tensor]:
    """The share (0 to 1) of outputs of each activation function that are above zero, by place.

    The mean is taken over dimensions that never shrink, which then have size 1.
    """
    gates: list[tuple[int, Tag]] = [
        (place, tag)
        for place, op in enumerate(graph.ops)
        if op.is_a(operators.RECTIFIER)
        for tag in op.writes()[:1]
    ]
    if not gates:
        warnings.warn(
            "no activation function of this model is known, so activity has no effect.", stacklevel=4
        )
        return {}
    over: Iterator[list[int]] = iter(())

    def see(func: Any, args: tuple[Any, ...], out: Any) -> Tensor | None:
        if not operators.is_a(func, operators.RECTIFIER) or not out.is_floating_point():
            return None
        dims = next(over, None)
        if dims is None:
            return None
        on = (out > 0).float()
        return on.mean(dims, keepdim=True) if dims else on

    def each() -> Iterator[Any]:
        nonlocal over
        for batch in batches:
            over = iter([d for d, n in enumerate(tag.dims) if isinstance(n, int)] for _, tag in gates)
            yield batch

    means = _measure(make_skeleton(model, real=True), each(), see, len(gates), "activation functions")
    return {place: mean for (place, _), mean in zip(gates, means, strict=True)}
