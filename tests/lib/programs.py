"""Prunus run as a program: started, waited for, killed, and what its folder says."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunus.files import read_json

ARGUMENTS = ["run", "--model", "zoo:digits_resnet", "--data", "digits", "--base-epochs", "3", "--epochs", "2"]


def figures(folder: Path) -> dict:
    """result.json without what a clock said."""
    result = read_json(folder / "result.json")
    for key in ("seconds", "machine"):
        del result[key]
    for costs in (result["before"], result["after"]):
        del costs["latency_ms"], costs["latency_spread_ms"]
    for row in [*result["history"]["base"], *result["history"]["recover"]]:
        del row["seconds"]
    return result


HELD = """
import os, runpy, sys, time
file, sys.argv[1:] = sys.argv[1], sys.argv[2:]
rename, there = os.replace, []
def replace(source, target, **options):
    if there:
        time.sleep(600)
        os._exit(1)
    rename(source, target, **options)
    there.extend([target] if os.path.abspath(target) == file else [])
os.replace = replace
runpy.run_module("prunus", run_name="__main__", alter_sys=True)
"""


def start(arguments: list[str], until: Path | None = None) -> subprocess.Popen:
    """The program; once it has written the file `until` it puts no other in its place, but waits to be killed."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    program = ["-c", HELD, str(until.absolute())] if until else ["-m", "prunus"]
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """The process, which does not outlive the test when that fails or takes too long."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def program(arguments: list[str]) -> None:
    """Run the program; it must end well. The test's own limit of time is its limit."""
    with ended(start(arguments)) as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said


def kill_when_there(arguments: list[str], file: Path) -> None:
    """SIGKILL the program when it has written `file`, and before it has written another."""
    with held_at(arguments, file) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL


@contextmanager
def held_at(arguments: list[str], file: Path) -> Iterator[subprocess.Popen]:
    """The program, which has written `file`, and waits before it writes another."""
    with ended(start(arguments, until=file)) as process:
        while not file.exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        yield process
