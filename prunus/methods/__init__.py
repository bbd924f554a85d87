"""The methods: one file each. The folder is the registry (see registry.py), a file's name is its method's name.

A method's file holds a docstring with its paper, a frozen keyword-only dataclass `Config` of its options, and

    prune(task, budget, config, run) -> Pruned

task has .model (left as it is), .data, .example, .loss; run has .seed, .folder(name), .log(...) and .progress.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What a method found. keep: axis -> kept indices; weights: of the unpruned model, by name, if it trained them."""

    keep: Mapping[str, Sequence[int]]
    weights: Mapping[str, Tensor] | None = None


def shown_batches(task, run, batches: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches of training examples, all if there are fewer, drawn with the run's seed; shows progress."""
    drawn = task.data.train.batches(batch_size, seed=run.seed)
    with run.progress("scoring", min(batches, math.ceil(len(task.data.train) / batch_size))) as step:
        for batch in islice(drawn, batches):
            yield batch
            step(1)
