"""The number of weights that stay in each layer."""

import math
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from prunus.errors import BudgetError, UserError, unknown
from prunus.metrics import format_number
from prunus.selection import Sparsity
from prunus.sparse.ranking import as_numpy, check_scores, count_alive, counts_above, lamp_of_sorted

Allocation = Literal["uniform", "uniform_plus", "erk", "pooled", "global", "lamp", "paper"]
RATES = {  # the share of its survivors that a layer loses in a round of the Lookahead paper
    "linear": {"linear": 0.5, "last": 0.25},
    "convolutional": {"conv": 0.15, "linear": 0.2, "last": 0.1},
}
LAST_KEEPS = 0.2  # smallest share of the last linear layer that stays under uniform_plus


def allocate_by_shapes(
    shapes: Mapping[str, torch.Size],
    sparsity: float | Sparsity,
    allocation: Allocation = "uniform",
    *,
    room: Mapping[str, int] | None = None,
    min_keep: int = 1,
) -> dict[str, int]:
    """Allocate the number of weights that stay to layers, for the allocations that need only shapes.

    Args:
        shapes: The shape of each weight, by parameter name, in the order of the layers.
        sparsity: The share of all weights that is zero afterwards.
        allocation: "uniform", "uniform_plus", "erk" or "paper".
        room: The most that each layer may keep (the weights not pruned yet); all if None.
        min_keep: The fewest that each layer keeps, as far as there is room.

    Returns:
        The number of weights that stay, by parameter name; their sum is exact.

    Raises:
        BudgetError: The sparsity cannot be met within these bounds.
    """
    if allocation not in ("uniform", "uniform_plus", "erk", "paper"):
        raise unknown("allocation by shapes", allocation, ["uniform", "uniform_plus", "erk", "paper"])
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    high = {name: room[name] if room else size for name, size in sizes.items()}
    low = {name: min(min_keep, most) for name, most in high.items()}
    total = _total(sparsity, sizes, low, high)
    factor, power = dict.fromkeys(shapes, 1.0), dict.fromkeys(shapes, 1.0)
    if allocation == "erk":
        factor = {name: sum(shape) / shape.numel() for name, shape in shapes.items()}
    elif allocation == "paper":
        power = {name: -math.log1p(-rate) for name, rate in _rates(shapes).items()}
    elif allocation == "uniform_plus":
        low = _uniform_plus(shapes, low, high)
        _total(sparsity, sizes, low, high)

    def ideal(log_x: float) -> dict[str, float]:
        """size * factor * x^power within bounds, which rises with x for every layer."""
        return {
            name: min(
                max(size * math.exp(math.log(factor[name]) + power[name] * log_x), low[name]), high[name]
            )
            for name, size in sizes.items()
        }

    below, above = -700.0, 60.0  # of log x: from no weight of a layer to all, for any factor and power
    for _ in range(80):
        middle = (below + above) / 2
        below, above = (below, middle) if sum(ideal(middle).values()) > total else (middle, above)
    return _round(ideal((below + above) / 2), high, total)


def allocate(
    scores: Mapping[str, Tensor],
    sparsity: float | Sparsity,
    allocation: Allocation = "uniform",
    *,
    within: Mapping[str, Tensor] | None = None,
    min_keep: int = 1,
) -> dict[str, int]:
    """Allocate the number of weights that stay to layers, for every allocation.

    Args:
        scores: The scores, by parameter name, each of its parameter's shape.
        sparsity: The share of all weights that is zero afterwards.
        allocation: One of `Allocation`; see selection.py.
        within: Masks so far, by parameter name; weights that they prune stay pruned.
        min_keep: The fewest that each layer keeps, as far as it has them.

    Returns:
        The number of weights that stay, by parameter name; their sum is exact.

    Raises:
        UserError: The allocation is unknown, or scores are not finite or negative.
        BudgetError: The sparsity cannot be met within these bounds.
    """
    if allocation not in get_args(Allocation):
        raise unknown("allocation", allocation, get_args(Allocation))
    sizes = {name: score.numel() for name, score in scores.items()}
    room = {name: count_alive(size, (within or {}).get(name)) for name, size in sizes.items()}
    if allocation not in ("pooled", "global", "lamp"):
        shapes = {name: score.shape for name, score in scores.items()}
        return allocate_by_shapes(shapes, sparsity, allocation, room=room, min_keep=min_keep)
    low = {name: min(min_keep, most) for name, most in room.items()}
    total = _total(sparsity, sizes, low, room)
    queues: list[np.ndarray] = []
    for name, score in scores.items():
        flat = check_scores(score, name)
        if within is not None and name in within:
            flat = flat[within[name].reshape(-1).to(flat.device)]
        rising = np.sort(as_numpy(flat))
        if allocation == "lamp":
            queue = lamp_of_sorted(rising)
        else:
            norm = (
                float(torch.linalg.vector_norm(flat, dtype=torch.float64)) if allocation == "global" else 1.0
            )
            queue = (rising / np.float32(norm or 1)).astype(np.float32, copy=False)
        queue[len(queue) - low[name] :] = np.inf
        queues.append(queue)
    return dict(zip(scores, counts_above(queues, total), strict=True))


def _total(
    sparsity: float | Sparsity, sizes: Mapping[str, int], low: Mapping[str, int], high: Mapping[str, int]
) -> int:
    """The number of weights that stay in all. Raises BudgetError if the bounds do not allow it."""
    sparsity = sparsity if isinstance(sparsity, Sparsity) else Sparsity(sparsity)
    weights, fewest, most = (sum(numbers.values()) for numbers in (sizes, low, high))
    if not weights:
        raise UserError("expected scores of at least one weight, but there are none to prune.")
    kept = sparsity.kept(weights)
    if kept < fewest:
        raise BudgetError(
            f"{sparsity} would leave {kept} of {weights} weights, but {fewest} must stay (in {len(sizes)} layers); "
            f"the most is {math.floor((1 - fewest / weights) * 1e6) / 1e6:g}."
        )
    if kept > most:
        raise BudgetError(
            f"{sparsity} would leave {format_number(kept)} of {format_number(weights)} weights, but only "
            f"{format_number(most)} may stay: the others are pruned already. Ask for more sparsity."
        )
    return kept


def _uniform_plus(
    shapes: Mapping[str, torch.Size], low: Mapping[str, int], high: Mapping[str, int]
) -> dict[str, int]:
    """The fewest weights that each layer keeps under uniform_plus."""
    first = next(iter(shapes))
    last = next((name for name in reversed(list(shapes)) if len(shapes[name]) == 2), None)
    low = dict(low)
    if len(shapes[first]) > 2:
        low[first] = high[first]
    if last is not None:
        low[last] = min(high[last], max(low[last], math.ceil(LAST_KEEPS * shapes[last].numel())))
    return low


def _rates(shapes: Mapping[str, torch.Size]) -> dict[str, float]:
    """The share of its survivors that each layer loses in a round of the paper."""
    is_linear = all(len(shape) == 2 for shape in shapes.values())
    rates = RATES["linear" if is_linear else "convolutional"]
    kinds = {name: "linear" if len(shape) == 2 else "conv" for name, shape in shapes.items()}
    kinds[list(shapes)[-1]] = "last"
    return {name: rates[kind] for name, kind in kinds.items()}


def _round(ideal: Mapping[str, float], high: Mapping[str, int], total: int) -> dict[str, int]:
    """Round to whole numbers that sum to `total`: the largest remainders are rounded up."""
    floors = {name: math.floor(number) for name, number in ideal.items()}
    rest = total - sum(floors.values())
    for name in sorted(ideal, key=lambda name: floors[name] - ideal[name]):
        if rest > 0 and floors[name] < high[name]:
            floors[name] += 1
            rest -= 1
    assert rest == 0, f"{rest} weights were not placed"
    return floors
