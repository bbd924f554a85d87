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
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from prunus.errors import FileError, PrunusError, UserError

SHOWN, LONGEST = 3, 60  # in an error: differences, and characters of a value


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
        lines: The lines that `read` found in the file.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], lines: Iterable[dict] = ()):
        self.path, self.hash = path, fingerprint(settings)
        self._known = {(line["on"], _key(line["widths"])): _candidate(line) for line in lines}
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


def read(path: Path, settings: Mapping[str, Any]) -> list[dict]:
    """Read a journal, and remove a last line that was cut short.

    Args:
        path: The file; it need not exist.
        settings: The settings of the search, plain JSON.

    Returns:
        The lines after the first; none if there is no file.

    Raises:
        FileError: The file cannot be read, or is damaged.
        UserError: The file is of a search with other settings; the message names the differences.
    """
    try:
        text = path.read_bytes() if path.exists() else b""
        whole, newline, torn = text.rpartition(b"\n")
        if torn:
            os.truncate(path, len(whole + newline))
        if not whole:
            path.unlink(missing_ok=True)
            return []
    except OSError as error:
        raise FileError(f"{path} could not be read: {error}.") from error
    lines = []
    for number, line in enumerate(whole.split(b"\n"), start=1):
        try:
            lines.append(json.loads(line))
            wanted = {"hash", "settings"} if number == 1 else {"hash", "on", *_NAMES}
            if not wanted <= lines[-1].keys():
                raise ValueError(f"expected the keys {', '.join(sorted(wanted))}")
            if lines[-1]["hash"] != lines[0]["hash"]:
                raise ValueError(f"the hash of another search, {lines[-1]['hash']}")
        except (ValueError, AttributeError) as error:
            raise FileError(
                f"{path}, line {number}, is damaged ({error}). Delete this line and all after it, then resume."
            ) from error
    first = lines.pop(0)
    if first["hash"] != fingerprint(settings):
        now = json.loads(json.dumps(settings))
        raise UserError(
            f"{path} is the journal of another search: {_differences(first['settings'], now)}. Scores of the two must "
            "not be mixed: search with the same settings and weights, or write to another file."
        )
    return lines


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of the settings, 16 characters."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = dict(_flatten(before)), dict(_flatten(now))
    found = [
        f"{name} was {_shorten(old.get(name))}, is now {_shorten(new.get(name))}"
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


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"


def _key(widths: Mapping[str, int]) -> frozenset[tuple[str, int]]:
    return frozenset(widths.items())


def _candidate(line: Mapping[str, Any]) -> Candidate:
    correct = None
    if "correct" in line:
        bits = np.frombuffer(base64.b64decode(line["correct"]), dtype=np.uint8)
        correct = np.unpackbits(bits, count=line["images"]).astype(bool)
    return Candidate(**{name: line[name] for name in _NAMES}, correct=correct)


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
