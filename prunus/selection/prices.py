"""Prices of widths: what a budget limits, as a function of widths, of one cost or of several.

Shapes: C candidates, A axes of the graph, of which those of blocks (`Graph.deep`) are the last.
"""

from functools import partial

import torch
from torch import Tensor

from prunus.errors import UserError
from prunus.graph import Graph
from prunus.selection import cost
from prunus.selection.budget import Budget, CostMeter, Metered
from prunus.selection.depth import is_deep
from prunus.selection.fill import Price


def price_of(graph: Graph, budget: Budget) -> Price:
    """Return the function that prices widths for a budget.

    Args:
        graph: The graph of the model; the widths of `Graph.deep` include its blocks.
        budget: The budget.

    Returns:
        price(widths (C, A)) -> costs (C,) in the budget's unit, predicted if they are measured; differentiable. Of
        several limits the largest share of one that is used up.

    Raises:
        UserError: The budget is in milliseconds and has no meter, or one that cannot price blocks; the message says
            what to do.
    """
    if isinstance(budget, Metered):
        return joint_price(graph, budget, meter_for(graph, budget).price)
    if not budget.limits.keys() <= set(cost.CLOSED_FORMS):
        raise UserError(
            f"{budget}: milliseconds have no closed form, they are measured. Measure first, then select:\n"
            "    table = prunus.latency.measure_tables(model, graph)\n"
            "    keep, figures = prunus.latency.select_measured(model, graph, scores, budget, table)"
        )
    return joint_price(graph, budget)


def meter_for(graph: Graph, budget: Metered) -> CostMeter:
    """Return a budget's meter for the widths of a graph, of `Graph.deep` the one that skips blocks."""
    return budget.meter.deep() if is_deep(graph) else budget.meter


def joint_price(graph: Graph, budget: Budget, measured: Price | None = None) -> Price:
    """Return the price of widths in the budget's unit; `measured` is that of milliseconds."""
    known: dict[str, Price] = {name: partial(cost.of, graph, name) for name in cost.CLOSED_FORMS}
    if measured is not None:
        known["latency_ms"] = measured
    prices = [known[name] for name in budget.limits]
    if len(prices) == 1:
        return prices[0]
    sizes = torch.tensor([[axis.size for axis in graph.axes.values()]], dtype=torch.float64)
    limits = [part.amount(price(sizes).item()) for part, price in zip(budget.parts, prices, strict=True)]

    def largest(widths: Tensor) -> Tensor:
        used = [price(widths) / limit for price, limit in zip(prices, limits, strict=True)]
        return torch.stack(used).amax(0)

    return largest
