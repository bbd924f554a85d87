"""Keep random units: the control that every comparison needs.

Mittal et al., Recovering from Random Pruning, WACV 2018, arXiv:1801.10447, found it hard to beat after fine-tuning.
With how=uniform all axes keep the same share, which gives a narrower network of the same shape. Reads neither data nor
weights.
"""

from dataclasses import dataclass

from prunus import scores
from prunus.methods import Pruned, Run, Units
from prunus.selection import Budget
from prunus.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """No options beyond those that all methods of units share."""


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep random units, sampled with the seed of the run."""
    graph = task.graph
    return Pruned(keep=config.select(graph, scores.random(graph, run.seed), budget))
