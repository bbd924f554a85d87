"""Carrying out orders: in this process one after the other, or several at once, each in a process of its own.

A process is given its order on standard input, which stays open as long as this one lives; when it is closed, however
this process ended, the other stops. What it shows goes to a file of its own, and the last line says why it failed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError
from prunus.progress import bar
from prunus.run.orders import Order, Queue, Subject, carry_out, from_line, to_line

PROGRAM = "from prunus.run.workers import main; main()"
POLL_S = 0.2
PATIENCE_S = 10.0  # for a process that was asked to stop, before it is killed
ASKED = 6  # times, before a process without its parent ends itself


def run_here(queue: Queue, subject: Subject, progress: Callable[..., Any]) -> None:
    """Carry out all orders in this process; one that fails is noted, and the others go on.

    Args:
        queue: The orders.
        subject: What is pruned.
        progress: How to show the progress of each; its label says which it is, and how long all will take.
    """
    began = time.monotonic()
    for order in queue.drain():
        label = f"{queue.done + 1} of {queue.total}{time_left(queue, time.monotonic() - began)}, {order.name}"
        try:
            carry_out(order, subject, prefixed(progress, label))
        except Exception as error:
            queue.end(order, reason_of(error))
        else:
            queue.end(order, None)


def run_in_processes(
    queue: Queue, subject: Subject, jobs: int, logs: Path, progress: Callable[..., Any]
) -> None:
    """Carry out all orders in processes; those that run are stopped if this one is interrupted.

    Args:
        queue: The orders.
        subject: What is pruned, by names.
        jobs: The most processes at once.
        logs: The folder of a file for each order, with what its process showed.
        progress: How to show the progress of all: a step for each stage that is finished.
    """
    running: dict[str, tuple[Order, subprocess.Popen[bytes]]] = {}
    left = {order.name: len(order.stages) - order.count_finished() for order in queue.waiting}
    stages, seen = sum(left.values()), 0
    logs.mkdir(parents=True, exist_ok=True)
    try:
        with progress("comparing", stages) as step:
            while queue.open:
                while len(running) < jobs and (order := queue.take()) is not None:
                    running[order.name] = order, start(order, subject, logs / f"{order.name}.txt")
                for order, process in list(running.values()):
                    if (status := process.poll()) is not None:
                        del running[order.name]
                        close(process)
                        queue.end(order, failure(status, logs / f"{order.name}.txt"))
                for order, _ in running.values():
                    left[order.name] = len(order.stages) - order.count_finished()
                now = stages - sum(left[name] for name in queue.open)
                step(now - seen, f"{queue.done} of {queue.total} done, now {', '.join(running) or 'none'}")
                seen = now
                time.sleep(POLL_S if running else 0)
    finally:
        stop([process for _, process in running.values()])


def start(order: Order, subject: Subject, log: Path) -> subprocess.Popen[bytes]:
    """Start a process for an order."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended; its log says why
        process.stdin.write(to_line(order, subject))
        process.stdin.flush()
    return process


def close(process: subprocess.Popen[bytes]) -> None:
    """Close the standard input of a process."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask processes to stop, wait until they have, and kill those that do not."""
    for process in processes:
        close(process)
    until = time.monotonic() + PATIENCE_S
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def failure(status: int, log: Path) -> str | None:
    """Say why a process failed; None if it did not."""
    if status == 0:
        return None
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-status).name}; see {log}."
        return f"its process was killed by signal {-status}; see {log}."
    lines = log.read_text(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else f"its process ended with status {status} and said nothing."


def reason_of(error: Exception) -> str:
    """Say in one line why an order failed."""
    text = str(error) if isinstance(error, PrunusError) else f"unexpected {type(error).__name__}: {error}"
    return " ".join(text.split())


def time_left(queue: Queue, past_s: float) -> str:
    """Say how long the orders that are left will take, if each takes as long as those before on average."""
    if not queue.done:
        return ""
    left_s = past_s / queue.done * (queue.total - queue.done)
    return f" (about {left_s / 60:.0f} min left)" if left_s >= 90 else f" (about {left_s:.0f} s left)"


def prefixed(progress: Callable[..., Any], prefix: str) -> Callable[..., Any]:
    """Make a display of progress whose labels begin with a text."""

    @contextmanager
    def shown(label: str, total: int) -> Iterator[Any]:
        with progress(f"{prefix}: {label}", total) as step:
            yield step

    return shown


def main() -> None:
    """Carry out the order on standard input; the process of `start`."""
    order, subject = from_line(sys.stdin.buffer.readline())
    # A shell lets programs in the background ignore interruptions, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=stop_at_end, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        carry_out(order, subject, bar)
    except KeyboardInterrupt:
        sys.exit("stopped.")
    except Exception as error:
        if not isinstance(error, PrunusError):
            traceback.print_exc()
        sys.exit(reason_of(error))


def stop_at_end(source: int) -> None:
    """Interrupt this process when the pipe `source`, a file descriptor, is closed at its other end.

    An interruption is lost in code that catches all errors, such as a destructor, so it is repeated. A process that
    goes on all the same ends itself; its run can be resumed, as after any kill.
    """
    while os.read(source, 1):  # not by sys.stdin, whose lock would be held when this process ends
        pass
    for _ in range(ASKED):
        interrupt_main()
        time.sleep(PATIENCE_S)
    os._exit(1)
