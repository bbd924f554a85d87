"""Processes that write into the same folders at the same moments; barriers keep them in step, no clock does."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from prunus.errors import UserError
from prunus.run import RunFolder, lock

SPAWN = multiprocessing.get_context("spawn")


def compete(folders: list[Path], *, resume: bool) -> list[list[tuple[int, str]]]:
    """Let two processes begin a run in each folder at once; returns, by folder, what became of each: (pid, words)."""
    with SPAWN.Manager() as manager, ProcessPoolExecutor(2, SPAWN) as pool:
        barriers = manager.Barrier(2), manager.Barrier(2)
        both = [pool.submit(begin_in_each, folders, resume, *barriers) for _ in range(2)]
        return [list(each) for each in zip(*(one.result() for one in both), strict=True)]


def begin_in_each(folders: list[Path], resume: bool, start, met) -> list[tuple[int, str]]:
    """Begin a run in each folder when the other process does; end it when both know what became of them."""
    try:
        return [(os.getpid(), begin(folder, resume, start, met)) for folder in folders]
    except BaseException:  # the other process does not wait for this one
        start.abort()
        met.abort()
        raise


def begin(folder: Path, resume: bool, start, met) -> str:
    """Begin a run; returns "won", or the words with which it was refused."""
    start.wait()
    try:
        with RunFolder(folder, {"seed": 0}, resume=resume) as run:
            met.wait()
            run.stage("base", lambda: {"by": os.getpid()})
            return "won"
    except UserError as error:
        met.wait()
        return str(error)


def leave_locks(folders: list[Path]) -> int:
    """Let a process take the lock of every folder and be killed; returns its pid."""
    process = SPAWN.Process(target=take_and_die, args=(folders,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return process.pid


def take_and_die(folders: list[Path]) -> None:
    """Take the lock of every folder, and be killed."""
    for folder in folders:
        lock.take(folder / lock.NAME)
    os.kill(os.getpid(), signal.SIGKILL)
