"""Metrics: the number that a task is judged by, and how people read numbers."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The number that a task is judged by.

    Args:
        key: The name under which `Task.evaluate` and result.json hold it.
        unit: The unit in which it is shown, such as "%", "dB" or "nats"; empty for a plain number.
        higher_is_better: Whether a higher value is a better model.
        factor: The stored value times `factor` is in `unit`: 100 for a share shown in per cent.
        digits: How many digits after the point are shown.
    """

    key: str
    unit: str = ""
    higher_is_better: bool = True
    factor: float = 1.0
    digits: int = 2

    def text(self, value: float | None) -> str:
        """Return a stored value as people read it, such as "92.30 %" or "31.04 dB"; None was NaN or infinite."""
        if value is None:
            return "not finite"
        return self._with_unit(f"{self.factor * value:.{self.digits}f}", self.unit)

    def change(self, before: float | None, after: float | None) -> str:
        """Return the difference of two stored values, such as "-0.28 points" (of per cent) or "+0.31 dB"."""
        if before is None or after is None:
            return ""
        return self._with_unit(f"{self.factor * (after - before):+.{self.digits}f}", self.unit_of_changes)

    def is_worse(self, value: float | None, other: float | None) -> bool:
        """Return whether a stored value is that of a worse model than another; any number is better than none."""
        numbers = [number is not None and math.isfinite(number) for number in (value, other)]
        if value is None or other is None or not all(numbers):
            return numbers == [False, True]
        return value < other if self.higher_is_better else value > other

    def spread(self, deviation: float) -> str:
        """Return a standard deviation of stored values, such as "0.20 points"."""
        return self._with_unit(f"{self.factor * deviation:.{self.digits}f}", self.unit_of_changes)

    @property
    def unit_of_changes(self) -> str:
        """The unit of differences: points for per cent, because a per cent of a per cent would be read otherwise."""
        return "points" if self.unit == "%" else self.unit

    @staticmethod
    def _with_unit(number: str, unit: str) -> str:
        return f"{number} {unit}" if unit else number


def format_number(number: float, digits: int = 4) -> str:
    """Write a number for people, such as 41.21 M for 41214976.

    Args:
        number: The number.
        digits: How many significant digits to show.

    Returns:
        The number in thousands (k), millions (M) or billions (G) if it is large.
    """
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.{digits}g} {letter}"
    return f"{number:.{digits}g}"


ACCURACY = Metric(key="accuracy", unit="%", factor=100.0)
