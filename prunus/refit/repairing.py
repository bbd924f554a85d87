"""Repair: shrink a model, and fit what is left to the original's answers."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

from torch import nn

from prunus.errors import unknown
from prunus.graph import Graph, Keep
from prunus.refit.batches import read_batches
from prunus.refit.in_order import fit_in_order
from prunus.refit.moments import Moments
from prunus.refit.systems import RIDGE
from prunus.surgery import clone, shrink

How = Literal["order", "once"]


def repair(
    model: nn.Module,
    graph: Graph,
    keep: Keep,
    batches: Iterable[Any],
    *,
    how: How = "order",
    ridge: float = RIDGE,
) -> nn.Module:
    """Shrink a model and fit what is left to the original's answers; no labels, no training.

    Layers behind a cut are fitted by least squares, batch norms get the statistics of their new inputs. All batches are
    held at once, in both models: as much memory as one pass of each over all of them, without gradients. 512 to 1,024
    images are enough for networks of ResNet-20's size. Source: ours.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        keep: axis -> indices that stay.
        batches: Inputs as the model takes them: a tensor, a tuple or a dict each.
        how: "order": each layer in turn, on the inputs that the layers fitted before give it; "once": all on the
            original's inputs, which is less good (see `Moments`, which serves any number of cuts).
        ridge: How much the weights are held to the ones that were cut, as a share of the mean diagonal of the
            equations.

    Returns:
        The small model, proved as by `shrink` before batch norms are changed, and for "order" before it is fitted.

    Raises:
        UserError: There is no batch, the model cannot be called with one, `keep` does not fit the graph, or `ridge` is
            no number from 0.
        PruningError: The proof failed, or a number is not finite.
    """
    if how not in get_args(How):
        raise unknown("way to repair", how, get_args(How))
    given = read_batches(batches)
    if how == "once":
        model = clone(model, Moments(model, graph, given).weights(keep, ridge))
    small = shrink(model, graph, keep)
    fit_in_order(model, small, graph, keep, given, layers=how == "order", ridge=ridge)
    return small
