"""Keep units by lot: the control every table needs.

Mittal et al., Recovering from Random Pruning, WACV 2018, arXiv:1801.10447, found it hard to beat after fine-tuning.
With how=uniform all axes keep the same share, which is a narrower network of the same shape.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.methods import Pruned, Run, Units
from prunus.selection import Budget
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """Nothing of its own."""


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Units drawn with the run's seed; reads neither data nor weights."""
    graph = task.graph
    return Pruned(keep=config.select(graph, scores.random(graph, run.seed), budget))
