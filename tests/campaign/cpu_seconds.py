"""A plugin of pytest that counts the CPU seconds of each test, which other programs on the machine hardly change.

    python -m pytest -p tests.campaign.cpu_seconds tests/run

prints the sum over all tests, that of each file, and the slowest tests. What a fixture takes counts for the first test
that uses it, and the processes that a test starts count for it.
"""

from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

SHOWN = 30

_seconds: Counter[str] = Counter()


def measure() -> float:
    """Return the CPU seconds of this process, of those that it has started, and of those that they have."""
    this = psutil.Process()
    return sum(sum(each.cpu_times()[:4]) for each in (this, *this.children(recursive=True)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Count a test, its fixtures included."""
    before = measure()
    try:
        return (yield)
    finally:
        _seconds[item.nodeid] += measure() - before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was counted."""
    files: Counter[str] = Counter()
    for test, seconds in _seconds.items():
        files[test.partition("::")[0]] += seconds
    terminalreporter.section("CPU seconds")
    terminalreporter.write_line(f"{sum(files.values()):8.1f} all {len(_seconds)} tests")
    for name, seconds in [*files.most_common(SHOWN), *_seconds.most_common(SHOWN)]:
        terminalreporter.write_line(f"{seconds:8.1f} {name}")
