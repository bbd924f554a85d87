"""Trials that damage a file and read it, and their summary."""

import argparse
import resource
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from prunus.errors import PrunusError, UserError
from tests.campaign.damage import damages
from tests.campaign.record import CampaignRecord, Case, add_option

MOST_MB = 1024  # by which the process may grow
SHOWN = 300  # bytes of a damage


class Tally:
    """What came of the trials of one reader.

    Args:
        name: Its name in the summary.
        read: Reads a damaged file, given in a copy of its folder.
        file: The whole file.
        home: The folder that is copied with it; None: the file alone.
        json_only: Whether damage leaves it JSON of some kind.
        allowed: The kind of error that damage may end in.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Path], None],
        file: Path,
        home: Path | None = None,
        *,
        json_only: bool = False,
        allowed: type[PrunusError] = UserError,
    ):
        self.name, self.read, self.file, self.home = name, read, file, home
        self.json_only, self.allowed = json_only, allowed
        self.counts: Counter[str] = Counter()
        self.faults: dict[str, bytes] = {}  # the first damage that causes each other error

    def trial(self, data: bytes, folder: Path) -> None:
        """Read damaged contents in a fresh copy of the file's home."""
        place = folder / "trial"
        if self.home is None:
            place.mkdir()
            file = place / self.file.name
        else:
            shutil.copytree(self.home, place)
            file = place / self.file.relative_to(self.home)
        file.write_bytes(data)
        try:
            self.read(file)
            self.counts["read"] += 1
        except self.allowed as error:
            self.counts["refused"] += 1
            if not str(error).isprintable():
                self.note(f"not printable: {error!r}", data)
        except Exception as error:
            frames = [
                each for each in traceback.extract_tb(error.__traceback__) if "/prunus/" in each.filename
            ]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the test"
            self.note(f"{type(error).__name__} in {where}: {str(error)[:100]}", data)
        finally:
            shutil.rmtree(place)

    def note(self, fault: str, data: bytes) -> None:
        """Count a fault; its first damage is kept."""
        self.counts["faults"] += 1
        self.faults.setdefault(fault, data)

    def summary(self) -> Case:
        """Return what came of the trials, as plain JSON."""
        counts = {key: self.counts[key] for key in ("refused", "read", "faults")}
        return counts | {"wrong": {fault: repr(data[:SHOWN]) for fault, data in self.faults.items()}}

    def run(self, trials: int, number: int) -> "Tally":
        """Make so many trials; number: the seed."""
        with tempfile.TemporaryDirectory() as folder:

            @seed(number)
            @settings(
                max_examples=trials,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(damages(self.file, json_only=self.json_only))
            def each(data: bytes) -> None:
                self.trial(data, Path(folder))

            each()
        return self


def peak_mb() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_all(kind: str, tallies: Iterable[Tally], description: str | None, trials: int) -> int:
    """Run the trials that the command line asks for, and print a line for each reader.

    Args:
        kind: What the cases are called in the record.
        tallies: The readers.
        description: What the program says about itself.
        trials: How many trials there are by default, of all readers together.

    Returns:
        The exit status: 1 if there are faults, or too much memory was used.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    parser.add_argument("--trials", type=int, default=trials, help="trials of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name contains this")
    add_option(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    record = CampaignRecord(asked.record)
    record.note_circumstances()
    total = Counter[str]()
    chosen = [tally for tally in tallies if asked.only in tally.name]
    trials = -(-asked.trials // len(chosen))
    for tally in chosen:

        def make(tally: Tally = tally) -> Case:
            before = peak_mb()
            return tally.run(trials, asked.seed).summary() | {"grown_mb": round(peak_mb() - before)}

        case = record.once(kind, f"{tally.name}, seed {asked.seed}, {trials} trials", make)
        total += Counter({key: case[key] for key in ("refused", "read", "faults", "grown_mb")})
        print(
            f"{tally.name:36}" + "".join(f"{case[key]:>9}" for key in ("refused", "read", "faults")),
            flush=True,
        )
        for fault, data in case["wrong"].items():
            print(f"    {fault}\n        {data}")
    made = total["refused"] + total["read"] + total["faults"]
    print(
        f"{made} trials: {total['refused']} refused, {total['read']} read, {total['faults']} faults;", end=" "
    )
    print(f"memory grew by {total['grown_mb']} MB, at most {MOST_MB} are allowed")
    return int(total["faults"] > 0 or total["grown_mb"] > MOST_MB)
