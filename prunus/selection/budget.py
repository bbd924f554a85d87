"""Budget: a cost and its limit.

A cost that has no closed form, milliseconds, needs someone to measure it: a `CostMeter`, which travels with the budget
(`Metered`), so that whoever is handed the budget and passes it to `select` keeps it without knowing how.
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


@dataclass(frozen=True, kw_only=True)
class Budget:
    """At most so much is kept of exactly one cost.

    macs: multiply-accumulates on the traced example. params: number of parameters.
    memory_mb: peak memory of the activations. latency_ms: measured time of one forward pass on the traced example,
    which only a `Metered` budget can keep.
    A float in (0, 1] is a fraction of what the model costs before; any other number is absolute, in the unit of
    the name. Raises UserError for what is neither.
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
                f"or a whole number of {self.name} above 1."
            )

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """The budget written as "macs=0.5" or "params=200000"."""
        name, _, number = text.partition("=")
        if name not in COSTS:
            raise unknown("cost in a budget", name, COSTS)
        try:
            value = float(number) if set(number) & set(".eE") else int(number)
        except ValueError:
            raise UserError(f"budget {text!r}: expected something like {name}=0.5.") from None
        return cls(**{name: value})

    @property
    def name(self) -> str:
        """Which cost is limited."""
        return next(name for name in COSTS if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """The number as it was given."""
        return getattr(self, self.name)

    @property
    def is_fraction(self) -> bool:
        """Whether the number is a share of the cost before."""
        return not isinstance(self.value, Integral) and self.value <= 1

    def limit(self, before: float) -> float:
        """The most that may be kept, in the cost's own unit, of a model that costs `before`.

        Raises BudgetError if that is more than the model costs.
        """
        if self.is_fraction:
            return self.value * before
        if self.value > before:
            raise BudgetError(
                f"the budget, {self}, is above what the model costs unpruned, {short(before)}: there is nothing "
                "to prune. Give a smaller number, or a fraction such as 0.5."
            )
        return self.value

    def __str__(self) -> str:
        amount = f"{self.value:.4g} of before" if self.is_fraction else short(self.value)
        return f"{self.name} at most {amount}"


COSTS = tuple(field.name for field in fields(Budget))


class CostMeter(ABC):
    """Measures what a keep costs, and so keeps a budget that has no closed form."""

    @abstractmethod
    def price(self, widths: Tensor) -> Tensor:
        """Return what widths (C, A) are predicted to cost: (C,), in the unit of the limit."""

    @abstractmethod
    def select(self, budget: "Budget", propose: Callable[[Callable], dict]) -> dict[str, list[int]]:
        """Return the best keep that holds as measured.

        propose(price) is the keep that holds by a price. Raises BudgetError if there is none.
        """

    @abstractmethod
    def figures(self, keep: Keep) -> dict[str, Any]:
        """Return what a keep was measured to cost, plain JSON: original_ms, predicted_ms, measured_ms, runtime ..."""

    @abstractmethod
    def local_copy(self) -> "CostMeter":
        """Return a meter that knows what this one does, for use in a single process; it does not broadcast."""


@dataclass(frozen=True, kw_only=True)
class Metered(Budget):
    """A budget that knows who measures it."""

    meter: CostMeter = field(repr=False, compare=False)


def short(number: float) -> str:
    """A number for people: 41.21 M rather than 41214976."""
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {letter}"
    return f"{number:.4g}"


@dataclass(frozen=True)
class Sparsity:
    """The share of the weights up for pruning that will be zero, between 0 and 1. Raises UserError for others."""

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
        """The sparsity written as "0.8"."""
        try:
            return cls(float(text))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"sparsity {text!r}: expected a share between 0 and 1, such as 0.8.") from None

    @property
    def name(self) -> str:
        """What is limited, as a budget says it."""
        return "sparsity"

    @property
    def is_fraction(self) -> bool:
        """It always is one."""
        return True

    def kept(self, weights: int) -> int:
        """How many of so many weights stay."""
        return round((1 - self.value) * weights)

    def __str__(self) -> str:
        return f"sparsity {self.value:.6g}"
