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
    """An upper limit on exactly one cost.

    A float in (0, 1] is a share of the original's cost; any other number is absolute, in the cost's unit.

    Args:
        macs: Multiply-accumulates of one forward pass on the traced example.
        params: The number of parameters.
        latency_ms: Milliseconds of one forward pass on the traced example; only a `Metered` budget can be met.
        memory_mb: Peak memory of the activations, in MiB.

    Raises:
        UserError: None or several of the costs are given, or a number is out of range.
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None

    def __post_init__(self):
        given = [f"{name}={getattr(self, name)!r}" for name in COSTS if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(COSTS)
            raise UserError(f"a budget names exactly one of {names}; got {' and '.join(given) or 'none'}.")
        if isinstance(self.value, bool) or not isinstance(self.value, Real) or not 0 < self.value < math.inf:
            raise UserError(f"budget {given[0]}: expected a fraction such as 0.5, or a number above 1.")
        is_count = self.name in ("macs", "params") and not self.is_fraction
        if is_count and (self.value == 1 or self.value % 1):
            raise UserError(
                f"budget {given[0]} is ambiguous: write a float of at most 1.0 for a fraction, "
                f"or a whole number of {self.name} above 1; the nearest is {max(2, round(self.value))}."
            )

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse a budget such as "macs=0.5" or "params=200000"; UserError for anything else."""
        name, _, number = text.partition("=")
        if name not in COSTS:
            raise unknown("cost in a budget", name, COSTS)
        try:
            value = float(number) if set(number) & set(".eE") else int(number)
        except ValueError:
            raise UserError(f"budget {text!r}: expected something like {name}=0.5, got {number!r}.") from None
        return cls(**{name: value})

    @property
    def name(self) -> str:
        """The name of the limited cost."""
        return next(name for name in COSTS if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """The number as given."""
        return getattr(self, self.name)

    @property
    def is_fraction(self) -> bool:
        """Whether the number is a share of the original's cost."""
        return not isinstance(self.value, Integral) and self.value <= 1

    def limit(self, before: float) -> float:
        """Return the limit in the cost's unit, for a model that costs `before`; BudgetError if it is above that."""
        if self.is_fraction:
            return self.value * before
        if self.value > before:
            raise BudgetError(
                f"the budget, {self}, is above what the model costs unpruned, {format_number(before)}: there is "
                "nothing to prune. Give a smaller number, or a fraction such as 0.5."
            )
        return self.value

    def __str__(self) -> str:
        amount = f"{self.value:.4g} of before" if self.is_fraction else format_number(self.value)
        return f"{self.name} at most {amount}"


COSTS = tuple(field.name for field in fields(Budget))


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

    @abstractmethod
    def local_copy(self) -> "CostMeter":
        """Return a copy with the same measurements, for use in a single process; it does not broadcast."""


@dataclass(frozen=True, kw_only=True)
class Metered(Budget):
    """A budget with the meter that measures its cost.

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
    def is_fraction(self) -> bool:
        """Always True; absolute numbers of weights are not taken."""
        return True

    def kept(self, weights: int) -> int:
        """Return how many of a number of weights stay."""
        return round((1 - self.value) * weights)

    def __str__(self) -> str:
        return f"sparsity {self.value:.6g}"
