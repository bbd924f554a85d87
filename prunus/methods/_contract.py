"""The methods: one file each. The folder is the registry (see registry.py), a file's name is its method's name.

A method's file holds a docstring with its paper, a frozen keyword-only dataclass `Config` of its options, and

    prune(task, budget: Budget, config, run) -> Pruned        removes units
    prune(task, sparsity: Sparsity, config, run) -> Pruned    sets single weights to zero

The type of the second argument says which of the two it is (Budget if none is written there).
task has .model (left as it is), .data, .example, .loss; run has .seed, .folder(name), .log(...) and .progress.

A Config that has `select(graph, scores, budget)` (see `Selection`) is asked before a run trains anything, and refuses
what could not be met later. That of a method that trains has `at_once()`, a copy that does not, for previews; it raises
UserError where nothing is known before. That of a method of single weights also has `usual`, the Sparsity taken where
none was asked for, and `check(graph, sparsity)`, which refuses what cannot be done.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from prunus.charts import Chart


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What a method found, of the unpruned model.

    keep: axis -> kept indices. weights: parameters and buffers by name, if it trained them.
    masks: parameter -> bool tensor of its shape, True stays, for every weight whose single entries were up for
    pruning; None for methods of units. pattern: in which the zeros lie, such as 2:4; no unit is removed then, for the
    others would move out of it. left_dense: weights that the pattern does not fit, and why.
    charts: what it draws of its search, for report.html.
    """

    keep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    weights: Mapping[str, Tensor] | None = None
    masks: Mapping[str, Tensor] | None = None
    pattern: str | None = None
    left_dense: Mapping[str, str] = field(default_factory=dict)
    charts: Sequence[Chart] = ()


def shown_batches(task, run, batches: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches of training examples, all if there are fewer, drawn with the run's seed; shows progress."""
    drawn = task.data.train.batches(batch_size, seed=run.seed)
    with run.progress("scoring", min(batches, math.ceil(len(task.data.train) / batch_size))) as step:
        for batch in islice(drawn, batches):
            yield batch
            step(1)
