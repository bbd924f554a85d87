"""A console that shows text from outside as it is: neither markup nor control characters in it have an effect."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

# Control characters but tab and line feed, surrogates of names that are no UTF-8, and marks that reverse the writing.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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


def escape_controls(text: str) -> str:
    """Escape the characters of a text that would act on a terminal.

    Args:
        text: Any text.

    Returns:
        The text with backslash escapes in their place.
    """
    return UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
