"""Pruning while a model is trained, in anyone's loop: at given steps, to given budgets, with the optimiser's state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.errors import UserError
from prunus.graph import Graph, Keep, Outputs, resized, trace, unwrap
from prunus.run.steps import within
from prunus.scores import Scores, magnitude
from prunus.selection import Budget, Selection, macs
from prunus.surgery import shrink_in_place


@dataclass(frozen=True)
class Cut:
    """What was done at a step of training.

    Args:
        step: The number of the optimiser's steps before it.
        macs_share: The multiply-adds that are left, as a share of the original's.
        units: The number of units that were removed at this step.
    """

    step: int
    macs_share: float
    units: int


class Gradual:
    """A plan to prune a model while it is trained, and what has been done of it.

    In your own loop, call `update` after each step of the optimiser; `prunus.trainer_callback` and
    `prunus.lightning_callback` do so in transformers' Trainer and in Lightning. The model is shrunk in place, so
    whatever holds it or its optimiser goes on. Each cut is chosen by scores of the weights of that moment, among the
    units that are left, and proved. Source: the schedule is given, as in Zhu & Gupta, arXiv:1710.01878.

    Args:
        example: An input, as `prunus.trace` takes it.
        limits: The budget of each cut, by the number of steps after which it is made. Shares are those of the model
            before the first cut.
        scores: scores(model, graph) -> {axis: one number per unit}, higher means keep.
        selection: The options of `prunus.select`: how, freeze and others.
        modes: As in `prunus.trace`.
        outputs: As in `prunus.trace`.

    Raises:
        UserError: There is no limit, or a step is below 1.
    """

    def __init__(
        self,
        example: Any,
        limits: Mapping[int, Budget],
        *,
        scores: Callable[[nn.Module, Graph], Scores] = magnitude,
        selection: Selection | None = None,
        modes: Collection[str] | Mapping[str, Any] | None = None,
        outputs: Outputs | None = None,
    ):
        if not limits or min(limits) < 1:
            raise UserError(
                "limits should give a budget for at least one step from 1 on, such as "
                f"{{100: prunus.Budget(macs=0.5)}}; got {dict(limits)}."
            )
        self.example, self.limits, self.scores = example, dict(sorted(limits.items())), scores
        self.selection = Selection() if selection is None else selection
        self.modes, self.outputs = modes, outputs
        self.graph: Graph | None = None
        self.keep: dict[str, list[int]] = {}
        self.cuts: list[Cut] = []
        self._done = 0  # steps of training up to which all cuts are made

    def begin(self, model: nn.Module) -> Graph:
        """Trace the model before its first cut, unless that is done.

        Args:
            model: The model, at its original size.

        Returns:
            The graph of the original, which `prunus.save` takes together with `keep`.
        """
        if self.graph is None:
            self.graph = trace(unwrap(model), self.example, modes=self.modes, outputs=self.outputs)
            self.keep = {name: list(range(axis.size)) for name, axis in self.graph.axes.items()}
        return self.graph

    def update(
        self, model: nn.Module, step: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Cut | None:
        """Make the cut that is due after a step of training.

        Args:
            model: The model, which is shrunk in place if a cut is due.
            step: The number of steps that the optimiser has taken.
            optimizer: The optimiser, whose state is cut with the model.

        Returns:
            What was done; None if nothing was due.

        Raises:
            BudgetError: The budget cannot be met.
            FileError: Something else has changed the model's sizes.
            PruningError: The proof failed; the model is as it was.
            UserError: The model cannot be shrunk in place.
        """
        graph = self.begin(model)
        due = [at for at in self.limits if self._done < at <= step]
        if not due:
            return None
        whole = {name: torch.zeros(axis.size) for name, axis in graph.axes.items()}
        with resized(graph, self.keep) as inner:
            for name, scores in self.scores(model, inner).items():
                whole[name][self.keep[name]] = scores.detach().float().cpu()
        keep = self.selection.select(graph, whole, self.limits[due[-1]], within=self.keep)
        with resized(graph, self.keep) as inner:
            shrink_in_place(model, inner, within(self.keep, keep, inner), optimizer=optimizer)
        return self._record(graph, keep, step)

    def restore(self, model: nn.Module, keep: Keep, step: int) -> None:
        """Bring a model at its original size to where an interrupted training was, before its weights are loaded.

        Args:
            model: The model, which is shrunk in place.
            keep: The units that were left, such as `prunus.export.load_keep` reads from a folder of `prunus.save`.
            step: The number of steps that the optimiser had taken.

        Raises:
            UserError: `keep` does not fit the model.
        """
        graph = self.begin(model)
        keep = graph.check_keep(keep)
        shrink_in_place(model, graph, keep, verify="off")  # it was proved when it was made
        self._record(graph, {name: list(keep[name]) for name in graph.axes}, step)

    def _record(self, graph: Graph, keep: dict[str, list[int]], step: int) -> Cut:
        gone = sum(len(units) - len(keep[axis]) for axis, units in self.keep.items())
        self.keep, self._done = keep, step
        cut = Cut(step, macs(graph, keep) / macs(graph), gone)
        self.cuts.append(cut)
        return cut
