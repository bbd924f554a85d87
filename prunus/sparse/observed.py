"""Lookahead's measured parts: what enters the products of a network, and how often its activations are on."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.errors import UserError
from prunus.graph import Graph, call, make_skeleton, named_tensors, operators, quiet_forward
from prunus.sparse.neighbours import Flow, memory


class _Watch(TorchDispatchMode):
    """Adds up what `see(operator, arguments, output)` gives, in the order in which it gives something."""

    def __init__(self, see: Callable[[Any, tuple, Any], Any]):
        super().__init__()
        self.see, self.sums, self.at = see, [], 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        seen = self.see(func, args, out)
        if seen is not None:
            self.sums[self.at : self.at + 1] = [
                seen if self.at >= len(self.sums) else self.sums[self.at] + seen
            ]
            self.at += 1
        return out


def _measured(model: nn.Module, batches: Iterable, see: Callable, expected: int, what: str) -> list[Tensor]:
    """The means over batches of what `see` gives in one pass, `expected` tensors."""
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
        raise UserError("there is no batch to score with.")
    return [total / count for total in watch.sums]


def inputs_of(model: nn.Module, graph: Graph, batches: Iterable) -> dict[int, Tensor]:
    """The mean square of what enters each product with a parameter, (inputs,), by the product's place."""
    bare = make_skeleton(model, real=True)
    parameters = {memory(parameter) for parameter in bare.parameters() if parameter.dim() > 1}
    flow = Flow(graph)
    flow.run(named_tensors(bare))
    sites = [site for site in flow.sites if not site.computed]
    places = [site.place for site in sites if not graph.ops[site.place].is_a(operators.EMBEDDING)]

    def see(func: Any, args: tuple, out: Any) -> Tensor | None:
        if not operators.is_a(func, operators.WEIGHTED):
            return None
        a, b = operators.operands(func, args)
        first = memory(a) in parameters
        if first == (memory(b) in parameters):
            return None
        channels = 1 if operators.is_a(func, operators.CONVOLUTION) else -1
        w, x, dim = (a, b, -2 if b.dim() > 1 else -1) if first else (b, a, channels)
        square = x.movedim(dim, -1).float().square()
        if operators.is_a(func, operators.BATCHED) and w.stride(0):  # a matrix for each of a batch
            return square.mean(1)
        return square.flatten(0, -2).mean(0)

    return dict(zip(places, _measured(bare, batches, see, len(places), "products with weights"), strict=True))


def activity_of(model: nn.Module, graph: Graph, batches: Iterable) -> dict[int, Tensor]:
    """How often the output of each activation function is above zero, by its place; along what may shrink."""
    gates = [
        (place, op) for place, op in enumerate(graph.ops) if op.is_a(operators.RECTIFIER) and any(op.results)
    ]
    if not gates:
        warnings.warn("no activation function of this model is known: activity weighs nothing.", stacklevel=4)
        return {}
    over = iter(())

    def see(func: Any, args: tuple, out: Any) -> Tensor | None:
        if not operators.is_a(func, operators.RECTIFIER) or not out.is_floating_point():
            return None
        dims = next(over, None)
        if dims is None:
            return None
        on = (out > 0).float()
        return on.mean(dims, keepdim=True) if dims else on

    def each() -> Iterator:
        nonlocal over
        for batch in batches:
            over = iter(
                [d for d, n in enumerate(op.results[0].dims) if isinstance(n, int)] for _, op in gates
            )
            yield batch

    means = _measured(make_skeleton(model, real=True), each(), see, len(gates), "activation functions")
    return {place: mean for (place, _), mean in zip(gates, means, strict=True)}
