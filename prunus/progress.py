"""The progress of a long stage, on standard error: a bar with the time left, or lines where there is no terminal.

    with bar("training", total=1000) as step:
        step(1, "loss 0.31")

Library code takes such a function as an argument; the default is `silent`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0

Step = Callable[..., None]  # step(done=1, note="")


@contextmanager
def silent(label: str, total: int) -> Iterator[Step]:
    """Show nothing; the arguments and the yielded step are those of `bar`."""
    yield lambda done=1, note="": None


@contextmanager
def bar(label: str, total: int, console: Console | None = None) -> Iterator[Step]:
    """Show the progress of a stage.

    Args:
        label: The stage's name.
        total: The number of steps.
        console: Where to show it; standard error if None.

    Yields:
        step(done=1, note=""): counts `done` more steps and shows the note.
    """
    console = console or Console(stderr=True)
    show = live_bar if console.is_terminal else lines
    with show(label, total, console) as step:
        yield step


@contextmanager
def live_bar(label: str, total: int, console: Console) -> Iterator[Step]:
    """Show a bar that is redrawn in place."""
    columns = "{task.description}", BarColumn(), "{task.percentage:>3.0f} %", TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        task = progress.add_task(label, total=total, note="")
        yield lambda done=1, note="": progress.update(task, advance=done, note=note)


@contextmanager
def lines(label: str, total: int, console: Console) -> Iterator[Step]:
    """Print a line every few seconds, and one at the end."""
    start = shown = time.monotonic()
    seen = 0

    def step(done: int = 1, note: str = "") -> None:
        nonlocal seen, shown
        seen += done
        now = time.monotonic()
        if now - shown >= LINE_EVERY_S and seen < total:
            shown = now
            left = f", {(now - start) / seen * (total - seen):.0f} s left" if seen else ""
            say(f"{100 * seen / total:.0f} %{left}{', ' * bool(note)}{note}")

    def say(text: str) -> None:
        console.print(f"{label}: {text}", highlight=False, markup=False, soft_wrap=True)

    yield step
    say(f"done in {time.monotonic() - start:.0f} s")
