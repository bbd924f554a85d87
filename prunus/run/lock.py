"""One writer a folder: a file that names the process that writes there.

    with sole_writer(folder):
        ...

The lock is the file .lock. It is written under another name and then linked to its own, so it appears whole and for one
process alone; where there are no hard links it is created with O_EXCL. Both are exclusive on local disks and on NFS
from version 3 on, because the server decides; flock is not, as many clients keep it to themselves. A lock is advisory:
it stops other runs of Prunus, and nothing else.

A process that is killed leaves its lock. On the same system a lock is stale if its process is gone, or if another
process has its number, which the time of the start tells. Whoever takes a stale lock over first locks the lock, by a
file that is named after the token of the stale one, and then looks again; so of two takers one wins. A lock of another
system cannot be judged, and stays until a person removes it. Source: ours.
"""

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
from msgspec import Meta

from prunus.errors import FileError, PrunusError, UserError
from prunus.files import read_json, write_json

NAME = ".lock"
ENDED = ("Z", "X")  # states of processes that run no more, but that nobody has waited for


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Args:
        pid: Its number.
        host: The name of its computer.
        system: The computer and the namespace in which `pid` is a number; containers have their own.
        start: The time of its start, as the system writes it.
        token: A random name, which tells two locks of one process apart.
    """

    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    host: str
    system: str
    start: str
    token: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]

    def is_gone(self) -> bool:
        """Return whether the process has ended; False if that cannot be known."""
        if self.system != name_system():
            return False
        if not exists(self.pid):
            return True
        now = read_start(self.pid)
        return now is not None and now != self.start

    def refusal(self, folder: Path) -> UserError:
        """Make the error for another writer."""
        where = f"process {self.pid} on {self.host}"
        if self.system == name_system():
            return UserError(
                f"{folder} is being written by {where}. Wait until that has ended, stop it, or choose another folder."
            )
        return UserError(
            f"{folder} is locked by {where}, and from {socket.gethostname()} nothing shows whether that still runs. "
            f"If it has ended, remove {folder / NAME} and repeat the command; otherwise wait, or choose another folder."
        )


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder: The folder; it is made if it is not there.

    Yields:
        Nothing.

    Raises:
        UserError: Another process holds it; the message names it.
        PrunusError: The folder cannot be written.
    """
    mine = take(folder / NAME)
    try:
        yield
    finally:
        release(folder / NAME, mine)


def check_free(folder: Path) -> None:
    """Raise UserError if another process writes into `folder` now."""
    holder = read(folder / NAME)
    if holder is not None and not holder.is_gone():
        raise holder.refusal(folder)


def take(path: Path) -> Holder:
    """Take the lock in file `path`, also from a process that is gone; the errors are those of `sole_writer`."""
    mine = name_process()
    while not create(path, mine):
        other = read(path)
        if other is None:
            continue  # it was released just now
        if not other.is_gone():
            raise other.refusal(path.parent)
        claim = path.with_name(f"{path.name}.{other.token}")
        claimed = take(claim)
        try:
            if read(path) == other:
                write_json(path, asdict(mine))
                return mine
        finally:
            release(claim, claimed)
    return mine


def release(path: Path, mine: Holder) -> None:
    """Remove the lock in file `path` if it is still `mine`; one that somebody damaged stays."""
    with contextlib.suppress(FileError):
        if read(path) == mine:
            path.unlink(missing_ok=True)


def create(path: Path, holder: Holder) -> bool:
    """Create a lock that is not there; returns whether this process did."""
    new = path.with_name(f"{NAME}.new.{holder.token}")
    write_json(new, asdict(holder))
    try:
        os.link(new, path)
    except FileExistsError:
        return new.stat().st_nlink == 2  # NFS may repeat a request whose answer was lost
    except OSError:
        return create_exclusively(path, new.read_bytes())
    finally:
        new.unlink()
    return True


def create_exclusively(path: Path, text: bytes) -> bool:
    """Create a file that is not there, where there are no hard links; returns whether this process did."""
    try:
        with path.open("xb") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise PrunusError(
            f"could not write {path}: {error}. Make the folder writable, or choose another."
        ) from error
    return True


def read(path: Path) -> Holder | None:
    """Return the holder of the lock in file `path`; None if there is no lock, FileError if it names nobody."""
    if not path.exists():
        return None
    try:
        return read_json(path, Holder)
    except FileError:
        if not path.exists():
            return None
        raise FileError(
            f"{path.parent} is locked, but {path} does not say by which process. If none writes there, remove that "
            "file and repeat the command."
        ) from None


def name_process() -> Holder:
    """Return this process as the holder of a new lock."""
    pid = os.getpid()
    return Holder(pid, socket.gethostname(), name_system(), read_start(pid) or "", uuid.uuid4().hex)


def name_system() -> str:
    """Name the computer and the namespace of its processes."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def exists(pid: int) -> bool:
    """Return whether there is a process of that number, be it another user's."""
    if os.name == "nt":  # where the call below would end it
        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_start(pid: int) -> str | None:
    """Read when a process was started; None if that cannot be known, "" if it has ended, but nobody has waited for it.

    On Linux these are ticks since a boot, because a time of day changes when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return "" if fields[0] in ENDED else f"{fields[19]} {boot}"
    except OSError:
        pass  # another system, or the process of another user
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None
