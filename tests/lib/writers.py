"""Processes that write into the same folders at the same moments; barriers keep them in step, no clock does."""

import multiprocessing
import os
import signal
from pathlib import Path

from prunus.errors import UserError
from prunus.run import RunFolder, lock

SPAWN = multiprocessing.get_context("spawn")


def compete(folders: list[Path], *, resume: bool) -> list[list[tuple[int, str]]]:
    """Let two processes begin a run in each folder at once; returns, by folder, what became of each: (pid, words)."""
    start, met, queue = SPAWN.Barrier(2), SPAWN.Barrier(2), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=begin_in_each, args=(folders, resume, start, met, queue)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    said = [queue.get() for _ in range(2 * len(folders))]
    for process in processes:
        process.join()
    return [[(pid, words) for pid, folder, words in said if folder == each] for each in folders]


def begin_in_each(folders, resume, start, met, queue) -> None:
    """Begin a run in each folder when the other process does, and end it when both know what became of them."""
    for folder in folders:
        start.wait()
        try:
            with RunFolder(folder, {"seed": 0}, resume=resume) as run:
                met.wait()
                run.stage("base", lambda: {"by": os.getpid()})
                queue.put((os.getpid(), folder, "won"))
        except UserError as error:
            met.wait()
            queue.put((os.getpid(), folder, str(error)))


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
