"""The journal of a search: its evaluations in a file that survives a kill, one line each.

The first line has the settings of the search; only a search with the same settings may continue the file. Every
further line is one network: its widths by the names of axes, its cost, its score. A line is on the disk before the
search continues. There is no other state: a resumed search makes the same proposals again and finds their scores
here, up to the end of the file. A line that a kill cut short is dropped, and its network is evaluated again.
Source: ours.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from prunus.errors import FileError, PrunusError, UserError
from prunus.files import Count, Real, Record, decode, shorten

SHOWN = 3  # differences in an error
LONGEST = 2**24  # bytes of a line


class Line(Record, frozen=True, kw_only=True):
    """The base of the lines of a journal. hash: the fingerprint of the settings of its search."""

    remedy: ClassVar[str] = "Delete this line and all after it, then resume."
    hash: str


class FirstLine(Line, frozen=True, kw_only=True):
    """The first line of a journal."""

    settings: dict[str, Any]


class Evaluation(Line, frozen=True, kw_only=True):
    """A further line: a `Candidate`, and the slice of data that it was evaluated on.

    Args:
        on: "search", "confirm" or "measured".
        correct: A bit for each of the images, the first the highest of its byte, in base64.
    """

    on: Literal["search", "confirm", "measured"]
    widths: dict[str, Count]
    cost: Real
    origin: str
    generation: Count
    score: Real
    images: Count
    complete: bool
    correct: str | None = None

    def candidate(self) -> "Candidate":
        """Make the candidate. Raises ValueError if `correct` does not fit the images and the score."""
        correct = None
        if self.correct is not None:
            bits = base64.b64decode(self.correct, validate=True)
            if len(bits) != (self.images + 7) // 8:
                raise ValueError(
                    f"{len(bits)} bytes of correct should be a bit for each of {self.images} images"
                )
            unpacked = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=self.images)
            correct = unpacked.astype(bool)
            if self.images and not math.isclose(correct.mean(), self.score):
                raise ValueError(f"the score is {self.score}, but {correct.mean()} of the images are correct")
        return Candidate(**{name: getattr(self, name) for name in _NAMES}, correct=correct)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A network to evaluate.

    Args:
        widths: axis -> units.
        cost: Its cost, in the budget's unit.
        origin: How it was found: "uniform", "seed", "random", "mutation", "crossover" or "greedy".
        generation: The number of its batch.
    """

    widths: dict[str, int]
    cost: float
    origin: str
    generation: int


@dataclass(frozen=True, kw_only=True)
class Candidate(Proposal):
    """An evaluated network.

    Args:
        score: Its score; higher is better.
        images: How many images it was scored on; 0 if the score was given as one number.
        complete: Whether it was scored on all images; otherwise it was certain to be worse than its rival.
        correct: bool (images,), whether its answer for each image was right.
    """

    score: float
    images: int = 0
    complete: bool = True
    correct: np.ndarray | None = field(default=None, repr=False, compare=False)

    def plain(self) -> dict[str, Any]:
        """All fields but `correct`, as plain JSON."""
        return {name: getattr(self, name) for name in _NAMES}


_NAMES = [each.name for each in fields(Candidate) if each.name != "correct"]


def rank(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The complete candidates, best first; among equal scores the cheaper, then the earlier."""
    whole = [each for each in candidates if each.complete]
    return sorted(whole, key=lambda each: (-each.score, each.cost))


def pareto_front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The Pareto front, by rising cost and score: the candidates for which no cheaper one is as good."""
    found: list[Candidate] = []
    for each in sorted(
        rank(candidates), key=lambda each: each.cost
    ):  # stable: of one cost the best comes first
        if not found or each.score > found[-1].score:
            found.append(each)
    return found


class Journal:
    """The evaluations of a search, by (the slice of data they used, widths).

    Args:
        path: The file; None: in memory only.
        settings: The settings of the search, plain JSON.
        known: The evaluations that `read` found in the file.
    """

    def __init__(
        self, path: Path | None, settings: Mapping[str, Any], known: Iterable[tuple[str, Candidate]] = ()
    ):
        self.path, self.hash = path, fingerprint(settings)
        self._known = {(on, _key(each.widths)): each for on, each in known}
        if path is not None and not path.exists():
            _append(path, {"hash": self.hash, "settings": settings})

    def get(self, on: str, widths: Mapping[str, int]) -> Candidate | None:
        """The evaluation of a network on a slice of data ("search", "confirm", "measured"), or None."""
        return self._known.get((on, _key(widths)))

    def add(self, on: str, candidate: Candidate) -> None:
        """Store an evaluation; returns once it is on the disk. Raises PrunusError if it cannot be written."""
        self._known[on, _key(candidate.widths)] = candidate
        if self.path is not None:
            line = {"hash": self.hash, "on": on, **candidate.plain()}
            if candidate.correct is not None:
                line["correct"] = base64.b64encode(np.packbits(candidate.correct).tobytes()).decode("ascii")
            _append(self.path, line)


def read(path: Path, settings: Mapping[str, Any]) -> list[tuple[str, Candidate]]:
    """Read a journal, and remove a last line that was cut short.

    Args:
        path: The file; it need not exist.
        settings: The settings of the search, plain JSON.

    Returns:
        The evaluations in order, each with the slice of data that it used; none if there is no file.

    Raises:
        FileError: The file cannot be read, or is damaged.
        UserError: The file is of a search with other settings; the message names the differences.
    """
    first, known, end = None, [], 0
    try:
        if not path.exists():
            return []
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), start=1):
                where = f"{path}, line {number},"
                if not line.endswith(b"\n"):
                    if len(line) == LONGEST:
                        raise FileError(f"{where} is longer than {LONGEST} bytes. {Line.remedy}")
                    break
                end += len(line)
                if first is None:
                    first = decode(line, FirstLine, where)
                else:
                    known.append(_read_evaluation(line, first, where))
        if end < path.stat().st_size:
            os.truncate(path, end)
        if first is None:
            path.unlink()
            return []
    except OSError as error:
        raise FileError(f"{path} could not be read: {error}.") from error
    if first.hash != fingerprint(settings):
        now = json.loads(json.dumps(settings))
        raise UserError(
            f"{path} is the journal of another search: {_differences(first.settings, now)}. Scores of the two must "
            "not be mixed: search with the same settings and weights, or write to another file."
        )
    return known


def _read_evaluation(text: bytes, first: FirstLine, where: str) -> tuple[str, Candidate]:
    """Read a line after the first; FileError if it is damaged, or of another search."""
    line = decode(text, Evaluation, where)
    try:
        if line.hash != first.hash:
            raise ValueError(f"the hash of another search, {shorten(line.hash)}")
        return line.on, line.candidate()
    except ValueError as error:
        raise FileError(f"{where} is damaged ({error}). {Line.remedy}") from error


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of the settings, 16 characters."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = dict(_flatten(before)), dict(_flatten(now))
    found = [
        f"{name} was {shorten(old.get(name))}, is now {shorten(new.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _flatten(settings: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Each value that is not a dict, with its path of names."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _flatten(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, settings


def _key(widths: Mapping[str, int]) -> frozenset[tuple[str, int]]:
    return frozenset(widths.items())


def _append(path: Path, line: Mapping[str, Any]) -> None:
    text = json.dumps(line, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PrunusError(f"could not write {path}: {error}. Free some space, then resume.") from error
