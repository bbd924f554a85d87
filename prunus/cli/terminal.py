"""A console that shows text from outside as it is: neither markup nor control characters in it have an effect."""

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from prunus.errors import escape_controls


class Terminal(Console):
    """A console for text that may come from files and folder names.

    Args:
        options: The options of rich's Console, but for markup and emoji, which are off.
    """

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, but show control characters that stand in text as \\x1b and the like."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_controls(segment.text), segment.style)


# Of several processes only the first prints.
OUT = Terminal(quiet=os.environ.get("RANK", "0") != "0")
