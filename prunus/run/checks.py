"""Checks that a method's choice meets the limit."""

from typing import Any

from torch import Tensor

from prunus.errors import PruningError
from prunus.graph import Graph, Keep
from prunus.methods import Pruned
from prunus.selection import CLOSED_FORMS, Budget, Metered, Sparsity, cost
from prunus.sparse import masks, patterns


def check_budget(graph: Graph, budget: Budget, keep: Keep, method: str) -> None:
    """Raise PruningError if `method` exceeded a limit that has a closed form."""
    for part in budget.parts:
        if part.name in CLOSED_FORMS:
            limit = part.amount(cost.of(graph, part.name, {}))
            spent = cost.of(graph, part.name, graph.widths(keep))
            if spent > limit:
                raise PruningError(
                    f"method {method} chose {spent:.6g} {part.name}, above the budget of "
                    f"{limit:.6g}; this is a fault of the method."
                )


def check_latency(budget: Metered, keep: Keep, method: str) -> dict[str, Any]:
    """Return the measured milliseconds of a keep, and the limit; PruningError if they exceed it."""
    figures = budget.meter.figures(keep)
    timed = next(part for part in budget.parts if part.name not in CLOSED_FORMS)
    figures |= {"limit_ms": timed.limit(figures["original_ms"])}
    if figures["measured_ms"] > figures["limit_ms"]:
        raise PruningError(
            f"method {method} chose a network that takes {figures['measured_ms']:.4g} ms in "
            f"{figures['runtime']}, above the budget of {figures['limit_ms']:.4g}; this is a fault of the method."
        )
    return figures


def check_sparsity(sparsity: Sparsity, chosen: Pruned, method: str) -> None:
    """Raise PruningError unless exactly the number of weights stay that the sparsity leaves.

    With a pattern the number may differ by a block, and by the weights that the pattern does not fit.
    """
    if chosen.masks is None:
        raise PruningError(
            f"method {method} returned no masks for {sparsity}; this is a fault of the method."
        )
    kept = sum(masks.survivors(chosen.masks).values())
    there = sum(map(Tensor.numel, chosen.masks.values()))
    dense = sum(chosen.masks[name].numel() for name in chosen.left_dense)
    pattern = chosen.pattern and patterns.parse(chosen.pattern)
    block = pattern.rows * pattern.columns if isinstance(pattern, patterns.Blocks) else 0.5
    wanted, slack = (1 - sparsity.value) * there, block + 1e-9 * there
    if not wanted - slack <= kept <= wanted + slack + dense:
        raise PruningError(
            f"method {method} kept {kept} of {there} weights, not {wanted:.6g} as {sparsity} asks "
            "for; this is a fault of the method."
        )
