"""Prunus run as a program: started, waited for, killed, and what its folder says.

Each program is a process of its own, forked from a server that has imported Prunus and done nothing else, in one
thread: to import it takes longer than most programs of the tests. That `python -m prunus` is the same program is tested
in tests/cli.
"""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import NoReturn

from prunus.files import read_json

ARGUMENTS = ["run", "--model", "zoo:digits_resnet", "--data", "digits", "--base-epochs", "3", "--epochs", "2"]
ROOT = Path(__file__).parents[2]
SERVED = multiprocessing.get_context("forkserver")
SERVED.set_forkserver_preload(["tests.lib.programs", "prunus.cli.commands", "plotly.graph_objects"])


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


class Program:
    """A program that has been started.

    Args:
        arguments: Its command line.
        until: Once it has written this file, it puts no other in its place, but waits to be killed.
    """

    def __init__(self, arguments: list[str], until: Path | None = None):
        handle, name = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self._said = Path(name)
        held = until and str(until.absolute())
        target = (arguments, held, self._said, Path.cwd(), dict(os.environ))
        self._process = SERVED.Process(target=run, args=target)
        begin_server()
        self._process.start()

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status; minus the signal that ended it; None as long as it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._process.kill()

    def wait(self) -> str:
        """Wait until it ends; returns what it said."""
        self._process.join()
        return self._said.read_text()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait for it. It does not outlive a test that fails or takes too long."""
        if kind is not None:
            self.kill()
        self.wait()
        self._said.unlink()


def begin_server() -> None:
    """Begin the server, which imports this copy of Prunus and of the tests."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def run(
    arguments: list[str], held: str | None, said: Path, folder: Path, environment: dict[str, str]
) -> NoReturn:
    """Be the program: in its folder and its environment, with what it says in a file."""
    from prunus import cli

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with said.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    if held is not None:
        hold_at(held)
    raise SystemExit(cli.main(arguments))


def hold_at(file: str) -> None:
    """Let this process wait to be killed before it puts a file in place, once it has done so with `file`."""
    rename, there = os.replace, []

    def replace(source: os.PathLike, target: os.PathLike, **options: object) -> None:
        if there:
            time.sleep(600)
            os._exit(1)
        rename(source, target, **options)
        there.extend([target] if os.path.abspath(target) == file else [])  # noqa: PTH100

    os.replace = replace


def program(arguments: list[str]) -> None:
    """Run the program; it must end well. The test's own limit of time is its limit."""
    with Program(arguments) as process:
        said = process.wait()
    assert process.returncode == 0, said


def kill_when_there(arguments: list[str], file: Path) -> None:
    """SIGKILL the program when it has written `file`, and before it has written another."""
    with held_at(arguments, file) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL


@contextmanager
def held_at(arguments: list[str], file: Path) -> Iterator[Program]:
    """The program, which has written `file`, and waits before it writes another."""
    with Program(arguments, until=file) as process:
        while not file.exists():
            assert process.returncode is None, process.wait()
            time.sleep(0.01)
        yield process


def assert_killed_resumes(asked: list[str], moment: str, folder: Path) -> None:
    """A run that is killed when a file of its folder is there, and resumed, ends in the bits of an undisturbed one."""
    whole, killed = folder / "whole", folder / "killed"
    program([*asked, "--out", str(whole)])
    kill_when_there([*asked, "--out", str(killed)], killed / moment)
    assert not (killed / "result.json").exists()
    program([*asked, "--out", str(killed), "--resume"])
    assert figures(killed) == figures(whole) and figures(whole)["examples"]
    for name in ("model.safetensors", "keep.json", "base.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
