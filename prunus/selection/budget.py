"""Budgets: a cost and its limit.

Milliseconds have no closed form, so a `CostMeter` measures them. It is part of the budget (`Metered`): code that
receives the budget and passes it to `select` need not know how the cost is measured.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from prunus.errors import BudgetError, UserError, unknown
from prunus.graph import Keep
from prunus.metrics import format_number

Proposal = Callable[[Callable[[Tensor], Tensor]], dict[str, list[int]]]  # propose(price) -> keep


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper limits on one cost or several, all of which a keep has to meet.

    A float in (0, 1] is a share of the original's cost; any other number is absolute, in the cost's unit. What depends
    on batch and length is that of the traced example, so trace on the batch and length that are meant.

    Args:
        macs: Multiply-accumulates of one forward pass on the example.
        params: The number of parameters.
        latency_ms: Milliseconds of one forward pass on the example; only a `Metered` budget can be met.
        memory_mb: Peak memory of the activations, in MiB.
        weights_mb: Memory of parameters and buffers, in MiB.
        cache_mb: Memory of the keys and values of all attentions on the example, in MiB.

    Raises:
        UserError: None of the costs is given, or a number is out of range.
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    weights_mb: float | None = None
    cache_mb: float | None = None

    def __post_init__(self):
        if not self.limits:
            raise UserError(f"a budget names at least one of {', '.join(COSTS)}; got none.")
        for name, value in self.limits.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
                raise UserError(
                    f"budget {name}={value!r}: expected a fraction such as 0.5, or a number above 1."
                )
            is_count = name in ("macs", "params") and not _is_share(value)
            if is_count and (value == 1 or value % 1):
                raise UserError(
                    f"budget {name}={value!r} is ambiguous: write a float of at most 1.0 for a fraction, "
                    f"or a whole number of {name} above 1; the nearest is {max(2, round(value))}."
                )

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse a budget such as "macs=0.5" or "params=200000,cache_mb=0.5"; UserError for anything else."""
        values: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.partition("=")
            if name not in COSTS:
                raise unknown("cost in a budget", name, COSTS)
            if name in values:
                raise UserError(f"budget {text!r} limits {name} twice; leave one out.")
            try:
                values[name] = float(number) if set(number) & set(".eE") else int(number)
            except ValueError:
                raise UserError(
                    f"budget {text!r}: expected something like {name}=0.5, got {number!r}."
                ) from None
        return cls(**values)

    @property
    def limits(self) -> dict[str, float]:
        """The numbers as given, by the names of the limited costs."""
        return {name: value for name in COSTS if (value := getattr(self, name)) is not None}

    @property
    def parts(self) -> "list[Budget]":
        """A budget of one cost for each of the limits, without a meter."""
        return [Budget(**{name: value}) for name, value in self.limits.items()]

    @property
    def name(self) -> str:
        """The name of the limited cost; the names of several, joined by "and"."""
        return next(iter(self.limits)) if len(self.limits) == 1 else " and ".join(self.limits)

    @property
    def value(self) -> float:
        """The limit as given; with several limits 1, the most that may be used up of any of them."""
        return next(iter(self.limits.values())) if len(self.limits) == 1 else 1

    @property
    def is_fraction(self) -> bool:
        """Whether the limit is a share of the original's cost."""
        return _is_share(self.value)

    def limit(self, before: float) -> float:
        """Return the limit in the cost's unit, for a model that costs `before`; BudgetError if it is above that."""
        if self.value > before and not self.is_fraction:
            raise BudgetError(
                f"the budget, {self}, is above what the model costs unpruned, {format_number(before)}"
                f"{'' if len(self.limits) == 1 else ' of it'}: there is nothing to prune. Give a smaller number, or a "
                "fraction such as 0.5."
            )
        return self.amount(before)

    def amount(self, before: float) -> float:
        """Return the limit in the cost's unit, also if it is above what the model costs; BudgetError if that is 0."""
        if before <= 0:
            raise BudgetError(
                f"{self}: the unpruned model has none of it, so nothing can be saved. Leave it out."
            )
        return self.value * before if self.is_fraction else self.value

    def __str__(self) -> str:
        return " and ".join(
            f"{name} at most {f'{value:.4g} of before' if _is_share(value) else format_number(value)}"
            for name, value in self.limits.items()
        )


COSTS = tuple(field.name for field in fields(Budget))


def _is_share(value: float) -> bool:
    return not isinstance(value, Integral) and value <= 1


class CostMeter(ABC):
    """A meter of a cost that has no closed form, which selects within a budget by measuring."""

    @abstractmethod
    def price(self, widths: Tensor) -> Tensor:
        """Return the predicted costs (C,) of widths (C, A), in the unit of the limit."""

    @abstractmethod
    def select(self, budget: "Budget", propose: Proposal) -> dict[str, list[int]]:
        """Return the best keep whose measured cost is within the budget; BudgetError if there is none.

        propose(price) returns the best keep that is within the budget by a price (C, A) -> (C,).
        """

    @abstractmethod
    def figures(self, keep: Keep) -> dict[str, Any]:
        """Return the measured cost of a keep, plain JSON: original_ms, predicted_ms, measured_ms, runtime ..."""

    def deep(self) -> "CostMeter":
        """Return the meter of the same model whose widths are those of `Graph.deep`, blocks among them.

        Raises:
            UserError: The meter knows widths alone, as long as its class does not override this.
        """
        raise UserError(
            f"blocks cannot be chosen by milliseconds here, because a {type(self).__name__} predicts them for widths "
            "alone. Give a budget of macs, params or memory_mb, and measure the result."
        )

    @abstractmethod
    def local_copy(self) -> "CostMeter":
        """Return a copy with the same measurements, for use in a single process; it does not broadcast."""


@dataclass(frozen=True, kw_only=True)
class Metered(Budget):
    """A budget with the meter that measures its milliseconds.

    Args:
        meter: The meter.
    """

    meter: CostMeter = field(repr=False, compare=False)


@dataclass(frozen=True)
class Sparsity:
    """The share of zeros among the weights that may be pruned.

    Args:
        value: The share, above 0 and below 1.

    Raises:
        UserError: The value is not such a share.
    """

    value: float

    def __post_init__(self):
        value = self.value
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < 1:
            raise UserError(
                f"sparsity {value!r}: expected a share between 0 and 1, such as 0.8 for 80 % zeros "
                "(0 would prune nothing, 1 would leave nothing)."
            )

    @classmethod
    def parse(cls, text: str) -> "Sparsity":
        """Parse a sparsity such as "0.8"; UserError for anything else."""
        try:
            return cls(float(text))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"sparsity {text!r}: expected a share between 0 and 1, such as 0.8.") from None

    @property
    def name(self) -> str:
        """The name of the limited quantity, as a budget has one."""
        return "sparsity"

    @property
    def limits(self) -> dict[str, float]:
        """The number by the name of the limited quantity, as of a budget."""
        return {self.name: self.value}

    @property
    def is_fraction(self) -> bool:
        """Always True; absolute numbers of weights are not taken."""
        return True

    def kept(self, weights: int) -> int:
        """Return how many of a number of weights stay."""
        return round((1 - self.value) * weights)

    def __str__(self) -> str:
        return f"sparsity {self.value:.6g}"
