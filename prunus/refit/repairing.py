"""Repair: shrink a model, and fit what is left to the original's answers."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

from torch import nn

from prunus.errors import unknown
from prunus.graph import Graph, Keep, plain_model
from prunus.progress import Step, silent
from prunus.refit.batches import read_batches
from prunus.refit.fitted import Fitted
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
    return cut_and_fit(model, graph, keep, batches, how=how, ridge=ridge)[0]


def cut_and_fit(
    model: nn.Module,
    graph: Graph,
    keep: Keep,
    batches: Iterable[Any],
    *,
    how: How = "order",
    ridge: float = RIDGE,
    verify: str = "on",
    progress: Callable[..., AbstractContextManager[Step]] = silent,
) -> tuple[nn.Module, Fitted]:
    """Do what `repair` does, and say what was fitted.

    Args:
        model: As in `repair`.
        graph: As in `repair`.
        keep: As in `repair`.
        batches: As in `repair`.
        how: As in `repair`.
        ridge: As in `repair`.
        verify: "on" proves the cut, "off" does not, as in `shrink`.
        progress: Shows the layers or the batches, such as `progress.bar`.

    Returns:
        The small model, and what was fitted.

    Raises:
        UserError: As in `repair`.
        PruningError: As in `repair`.
    """
    if how not in get_args(How):
        raise unknown("way to repair", how, get_args(How))
    model, given = plain_model(model), read_batches(batches)
    if how == "order":
        small = shrink(model, graph, keep, verify=verify)
        return small, fit_in_order(model, small, graph, keep, given, ridge=ridge, progress=progress)
    weights, fitted = Moments(model, graph, given, progress=progress).fit(keep, ridge)
    model = clone(model, weights)
    small = shrink(model, graph, keep, verify=verify)
    fit_in_order(model, small, graph, keep, given, layers=False, progress=progress)
    return small, fitted
