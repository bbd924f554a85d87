"""Skip blocks: those with the smallest gradients, among neighbours that compute alike.

SGLP, arXiv:2410.14720: blocks are compared by the similarity of what they return (CKA), split along the depth into
segments of blocks that are alike (Fisher's optimal segmentation), and within each segment those with the smallest norm
of gradient go.

Departs: only the abstract and the opening of the paper were read. The similarities of a block are summed to one number,
and whole segments can go (delete=segments), as in a script of that title. Ours are the number of segments, where none
is given (the fewest that leave a tenth of the variance within them), and that segments give blocks in turn, in
proportion to how many they have. Widths stay as they are, and so do blocks that are parts of others (an attention in a
decoder layer).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunus import scores
from prunus.charts import Lines
from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import HALF, Options, Pruned, Run, check_loss, shown_batches
from prunus.options import Count
from prunus.selection import Bounds, Budget, Sparsity
from prunus.tasks import Task

UNEXPLAINED = 0.1  # of the variance of the similarities, within segments


@dataclass(frozen=True, kw_only=True)
class Config(Bounds, Options):
    """The options of sglp. The first and the last block stay, unless floor says otherwise: floor={"*:depth": 0}.

    Args:
        batches: The number of batches of training examples, without augmentation, that blocks are compared on.
        batch_size: The batch size.
        segments: The number of segments, at most that of the blocks; None: the fewest that leave a tenth of the
            variance within them.
        delete: Whether blocks go within each segment, of which one stays, or segment by segment.
        gradient: Whether the gradient is that of the parameters of a block, or of what it returns.
    """

    removes = "units"
    no_steps = "blocks are compared in the whole network"
    batches: Count = 8
    batch_size: Count = 64
    segments: Count | None = None
    delete: Literal["within", "segments"] = "within"
    gradient: Literal["parameters", "outputs"] = "parameters"

    def default_limit(self) -> Budget:
        """Return half the multiply-adds."""
        return HALF

    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise UserError if the model has no blocks, BudgetError if no number of them meets the limit."""
        assert isinstance(limit, Budget)  # see Method.check
        names = outermost(graph)
        if len(names) < 3:
            why = next(
                (f"{name}: {reason}" for name, reason in graph.blocks.unskippable.items()), "none multiplies"
            )
            raise UserError(
                f"sglp needs at least 3 blocks that can be skipped, the first and the last of which stay; this model "
                f"has {len(names)}. Of its modules, {why}. Take a method that makes layers narrower, such as taylor."
            )
        if self.segments is not None and self.segments > len(names):
            raise UserError(
                f"segments should be at most the number of blocks, {len(names)}, but is {self.segments}. Give fewer, "
                "or leave it out."
            )
        self.select(graph, {name: torch.ones(1) for name in names}, limit)

    def check_task(self, task: Task) -> None:
        """Raise UserError if the task has no loss in evaluation mode."""
        check_loss(task, "sglp", "another method, such as magnitude or activation")


def prune(task: Task, budget: Budget, config: Config, run: Run) -> Pruned:
    """Keep of each segment the blocks with the largest gradients, as many as fit the budget."""
    graph, names = task.graph, outermost(task.graph)
    batches = list(shown_batches(task, run, config.batches, config.batch_size))
    seen = scores.features(task.model, graph, batches)
    alike = similarity([seen[name] for name in names]).sum(1)
    number = fewest_segments(alike) if config.segments is None else config.segments
    parts = segment(alike, number)
    norms = scores.gradient_norms(task.model, graph, task.loss, batches, config.gradient)
    order = going(names, parts, norms, config.delete)
    run.log("segments", segments=[[names[i] for i in part] for part in parts])
    ranks = {name: torch.tensor([float(place)]) for place, name in enumerate(order)}
    chart = Lines(
        title="Similarity of blocks",
        note=f"The sum of each block's similarities (CKA) with all, in order; {len(parts)} segments.",
        x_label="block",
        y_label="similarity",
        series={
            f"segment {place}": [(float(i), float(alike[i])) for i in part]
            for place, part in enumerate(parts, 1)
        },
    )
    return Pruned(keep=config.select(graph, ranks, budget), charts=[chart])


def outermost(graph: Graph) -> list[str]:
    """List the axes of the blocks that are in no other block, in the order in which they run."""
    blocks = graph.blocks
    return [
        name for name, block in blocks.items() if not any(other.around(block) for other in blocks.values())
    ]


def similarity(features: Sequence[Tensor]) -> Tensor:
    """Compute the linear CKA of each two layers.

    Source: Kornblith et al., ICML 2019, arXiv:1905.00414.

    Args:
        features: For each of L layers its features (N, d); d may differ.

    Returns:
        (L, L), float64, 1 on the diagonal; 0 for a layer whose features are the same for all examples.
    """
    centred = [(each - each.mean(0)).double() for each in features]
    grams = torch.stack([(each @ each.T).flatten() for each in centred])  # (L, N * N)
    lengths = grams.norm(dim=1, keepdim=True)
    grams = torch.where(lengths > 0, grams / lengths.clamp_min(torch.finfo(grams.dtype).tiny), 0.0)
    return grams @ grams.T


def segment(values: Tensor, number: int) -> list[list[int]]:
    """Split a sequence into contiguous segments with the least sum of squared distances to their means.

    Source: Fisher, On Grouping for Maximum Homogeneity, 1958, doi:10.1080/01621459.1958.10501479.

    Args:
        values: The sequence (n,).
        number: The number of segments, 1 to n.

    Returns:
        The positions in each segment, in order.
    """
    n = len(values)
    spread = _spreads(values)
    best, cuts = spread[0].clone(), []  # best[j]: of the first j + 1 values, in the segments so far
    for _ in range(number - 1):
        tried = torch.full((n, n), torch.inf, dtype=torch.float64)
        for start in range(1, n):
            tried[start, start:] = best[start - 1] + spread[start, start:]
        best, starts = tried.min(0)
        cuts.append(starts)
    parts, stop = [], n
    for starts in reversed(cuts):
        start = int(starts[stop - 1])
        parts.append(list(range(start, stop)))
        stop = start
    return [list(range(stop)), *reversed(parts)]


def _spreads(values: Tensor) -> Tensor:
    """The sum of squared distances to the mean, of the values from i to j: (n, n)."""
    n, values = len(values), values.double()
    return torch.tensor(
        [
            [
                float((values[i : j + 1] - values[i : j + 1].mean()).square().sum()) if i <= j else 0.0
                for j in range(n)
            ]
            for i in range(n)
        ],
        dtype=torch.float64,
    )


def fewest_segments(values: Tensor) -> int:
    """Return the fewest segments that leave a tenth of the variance of a sequence within them."""
    spread = _spreads(values)
    for number in range(1, len(values)):
        parts = segment(values, number)
        if sum(spread[part[0], part[-1]] for part in parts) <= UNEXPLAINED * spread[0, -1]:
            return number
    return len(values)


def going(
    names: Sequence[str], parts: Sequence[Sequence[int]], norms: Mapping[str, Tensor], delete: str
) -> list[str]:
    """Order blocks by when they go, the first first.

    Args:
        names: The blocks.
        parts: The positions of those in each segment.
        norms: The gradient norm of each.
        delete: "within": segments give their weakest in turn, so that all keep the same share as nearly as can be, and
            one block of each goes last; "segments": the weakest segment gives all of its blocks first.

    Returns:
        The names in that order.
    """
    ranked = [sorted((names[i] for i in part), key=lambda name: float(norms[name])) for part in parts]
    if delete == "segments":
        ranked.sort(key=lambda part: sum(float(norms[name]) for name in part) / len(part))
        return [name for part in ranked for name in part]
    turns = [((place + 1) / len(part), name) for part in ranked for place, name in enumerate(part[:-1])]
    turns.sort(key=lambda turn: turn[0])
    last = sorted((part[-1] for part in ranked), key=lambda name: float(norms[name]))
    return [*(name for _, name in turns), *last]
