"""The tree of errors:

PrunusError                     anything Prunus raises on purpose
├── UserError (ValueError)      something given to Prunus is wrong; the command line exits with 2
│   ├── TraceError              the model cannot be traced
│   ├── BudgetError             the budget cannot be met; says what can
│   └── FileError               a file is missing, damaged or does not fit
├── PruningError                a shrink could not be proved; the user's model is untouched
└── TrainingError               training went wrong (a loss that is not a number); the last good state is kept

Messages say what was expected, what was seen, where, and what to do.
"""

import difflib
import re
from collections.abc import Iterable

# Control characters but tab and line feed, surrogates of names that are no UTF-8, and marks that reverse the writing.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

LONGEST = 300  # characters of another library's message


def escape_controls(text: str) -> str:
    """Escape the characters of a text that would act on a terminal.

    Args:
        text: Any text.

    Returns:
        The text with backslash escapes, such as \\x1b, in their place.
    """
    return UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class PrunusError(Exception):
    """Anything Prunus raises on purpose.

    Args:
        details: The message; control characters in it are escaped, because it may quote a file or a folder's name.
    """

    def __init__(self, *details: object):
        super().__init__(*(escape_controls(each) if isinstance(each, str) else each for each in details))


class UserError(PrunusError, ValueError):
    """Something given to Prunus is wrong."""


class TraceError(UserError):
    """The model cannot be traced."""


class BudgetError(UserError):
    """The budget cannot be met."""


class FileError(UserError):
    """A file is missing, damaged or does not fit."""


class PruningError(PrunusError):
    """A shrink could not be proved equal to the masked original."""


class TrainingError(PrunusError):
    """Training went wrong."""


def one_line(error: Exception) -> str:
    """Return the kind and the message of another library's error on one line of limited length."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Make the error for an unknown name: the message suggests the nearest names, then lists all.

    Args:
        kind: The kind of thing that was asked for, for example "method".
        name: The name that was given.
        known: The names that exist.

    Returns:
        The error, for the caller to raise.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")
