"""Damage to every file that Prunus reads: only a UserError may come of it, within bounded memory.

    python -m tests.campaign.fuzz --trials 10000 [--seed 0]

damages the examples in tests/campaign/files, each trial one of them, reads it by its public reader, and prints for each
reader how many trials were refused, how many read all the same, and every other error with the damage that causes it.
"""

import argparse
import copy
import json
import random
import resource
import shutil
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console

from prunus import report
from prunus.errors import UserError
from prunus.export import load, load_keep, load_masks
from prunus.files import read_json
from prunus.graph import trace
from prunus.latency.cache import Timings
from prunus.run import RunFolder
from prunus.run.records import check_record
from prunus.train import fit
from prunus.zoo import load_weights
from tests.campaign import examples
from tests.lib.searching import small_search

MOST_MB = 1024  # by which the process may grow
SHOWN = 300  # characters of a damage


# ------------------------------------------------------------------------------------ readers
def read_result(file: Path) -> None:
    """Read a result.json and show it in every way."""
    values = report.read_result(file)
    console = Console(file=StringIO(), width=100)
    console.print(report.summary(values))
    console.print(report.comparison({"a": values, "b": values}))
    report.write_page(file.with_name("report.html"), values)


def read_settings(file: Path) -> None:
    """Resume a run with the settings of the example."""
    original = json.loads((examples.FILES / "units" / "settings.json").read_text())
    RunFolder(file.parent, original, resume=True)


def read_stage(file: Path) -> None:
    """Read the record of a finished stage."""
    run = RunFolder(file.parents[1], json.loads((file.parents[1] / "settings.json").read_text()), resume=True)
    check_record(run.path, file.stem, run.stage(file.stem, dict))


def read_saved(file: Path) -> None:
    """Load a pruned model, its keep and its masks."""
    model = examples.perceptron()
    load_keep(file.parent, trace(model, examples.X))
    load_masks(file.parent)
    load(file.parent, model)


def read_checkpoint(file: Path) -> None:
    """Continue a training."""
    fit(examples.classifier(), examples.task(), examples.RECIPE, folder=file.parent)


def read_journal(file: Path) -> None:
    """Continue a search."""
    small_search(file.parent)


def read_times(file: Path) -> None:
    """Read the times of operators; damage is a warning, and they are measured again."""
    original = next((examples.FILES / "times").iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Timings(file.parent, json.loads(original.read_text())["circumstances"]).write()


def read_weights(file: Path) -> None:
    """Load weights into a model."""
    load_weights(examples.perceptron(), file)


def read_dhp(file: Path) -> None:
    """Restore a DHP search."""
    examples.dhp_search().restore(read_json(file))


def read_pass(file: Path) -> None:
    """Restore a PASS search."""
    examples.pass_search().restore(read_json(file))


def read_hypernetwork(file: Path) -> None:
    """Load a hypernetwork."""
    examples.pass_search().load(str(file))


READERS: dict[str, Callable[[Path], None]] = {
    "units/result.json": read_result,
    "weights/result.json": read_result,
    "units/settings.json": read_settings,
    **{
        f"weights/stages/{name}.json": read_stage
        for name in ("base", "prune", "shrink", "recover", "evaluate")
    },
    **{f"saved/{name}": read_saved for name in ("keep.json", "model.safetensors", "masks.safetensors")},
    "training/checkpoint.safetensors": read_checkpoint,
    "search/journal.jsonl": read_journal,
    "times": read_times,
    "given/weights.safetensors": read_weights,
    "given/weights.pt": read_weights,
    "dhp.json": read_dhp,
    "pass.json": read_pass,
    "hypernetwork.safetensors": read_hypernetwork,
}
STATES = ("dhp.json", "pass.json")  # a user's own checkpoint holds them, so only their JSON is damaged


def example_of(name: str) -> Path:
    """Return the example of a reader."""
    path = examples.FILES / name
    return next(path.iterdir()) if path.is_dir() else path


# ------------------------------------------------------------------------------------- damage
VALUES: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    0.5,
    -0.5,
    2**31,
    2**63,
    2**64,
    10**30,
    10**400,
    1e-320,
    1e308,
    -1e308,
]
VALUES += ["", "1", "text", "\x1b[2J\x07\x9b", "[bold]x[/nothing]", "</script>", "\u202e", "x" * 5000, "\0"]
VALUES += [[], {}, [[]], {"": None}, [1, 2, 3], {"size": 1}, float("nan"), float("inf")]
DEEP = "DEEP"  # stands for lists inside each other


@st.composite
def trees(draw: Callable[..., Any], tree: Any) -> str:
    """Damage a JSON tree in one to three places; returns its text."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        places = [(None, None), *list_places(tree)]
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        value = copy.deepcopy(draw(st.sampled_from([*VALUES, DEEP])))  # later places may lie in it
        what = draw(st.sampled_from(["replace", "replace", "delete", "add", "repeat"]))
        if parent is None:
            tree = value if what == "replace" and draw(st.booleans()) else tree
        elif what == "replace":
            parent[key] = value
        elif what == "delete":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(["more", "\x1b]0;x\x07", "format", "[red]", "0"]))] = value
        else:
            parent.extend([value] if what == "add" else [parent[key]] * draw(st.sampled_from([1, 1000])))
    depth = draw(st.sampled_from([10, 70, 500, 100_000]))
    return json.dumps(tree).replace(f'"{DEEP}"', "[" * depth + "]" * depth)


def list_places(tree: Any) -> list[tuple[Any, Any]]:
    """List every (parent, key) of a tree."""
    found: list[tuple[Any, Any]] = []
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in entries:
        found += [(tree, key), *list_places(inner)]
    return found


@st.composite
def raw(draw: Callable[..., Any], data: bytes) -> bytes:
    """Cut bytes short, change, insert or repeat some."""
    what, at = draw(st.sampled_from(["cut", "flip", "insert", "repeat"])), draw(st.integers(0, len(data)))
    if what == "cut":
        return data[:at]
    if what == "flip":
        changed = bytearray(data)
        for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
            changed[place] ^= draw(st.integers(1, 255))
        return bytes(changed)
    if what == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
    return data[:at] + data[at : at + draw(st.integers(1, 500))] + data[at:]


@st.composite
def tensors(draw: Callable[..., Any], data: bytes) -> bytes:
    """Damage the header of a safetensors file, or the JSON that it holds as text."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    texts = [key for key, text in header.get("__metadata__", {}).items() if text.startswith("{")]
    if texts and draw(st.booleans()):
        header["__metadata__"][texts[0]] = draw(trees(json.loads(header["__metadata__"][texts[0]])))
        text = json.dumps(header)
    else:
        text = draw(trees(header))
    return struct.pack("<Q", len(text.encode())) + text.encode() + data[8 + length :]


@st.composite
def lines(draw: Callable[..., Any], data: bytes) -> bytes:
    """Damage one line of JSON lines, repeat it, or leave it out."""
    found = data.splitlines(keepends=True)
    at = draw(st.integers(0, len(found) - 1))
    what = draw(st.sampled_from(["tree", "tree", "tree", "repeat", "delete"]))
    changed = draw(trees(json.loads(found[at]))).encode() + b"\n" if what == "tree" else found[at]
    found[at : at + 1] = [changed] * {"tree": 1, "repeat": 2, "delete": 0}[what]
    return b"".join(found)


def damages(name: str) -> st.SearchStrategy[bytes]:
    """Return damaged contents of an example."""
    data = example_of(name).read_bytes()
    if name in STATES:
        return trees(json.loads(data)).map(str.encode)
    if name.endswith(".safetensors"):
        return raw(data) | tensors(data)
    if name.endswith(".jsonl"):
        return raw(data) | lines(data)
    if name.endswith(".pt"):
        return raw(data)
    return raw(data) | trees(json.loads(data)).map(str.encode)


# ------------------------------------------------------------------------------------- trials
class Tally:
    """What came of the trials of one reader.

    Args:
        name: The name of the reader.
    """

    def __init__(self, name: str):
        self.name = name
        self.counts: Counter[str] = Counter()
        self.faults: dict[str, bytes] = {}  # the first damage that causes each other error

    def trial(self, data: bytes, folder: Path) -> None:
        """Read damaged contents in a fresh copy of the example's folder."""
        original = example_of(self.name)
        home = original.parent if original.parent != examples.FILES else None
        if self.name.startswith("weights/stages"):
            home = original.parents[1]
        place = folder / "trial"
        if home is not None:
            shutil.copytree(home, place)
            file = place / original.relative_to(home)
        else:
            place.mkdir()
            file = place / original.name
        file.write_bytes(data)
        try:
            READERS[self.name](file)
            self.counts["read"] += 1
        except UserError as error:
            self.counts["refused"] += 1
            if not str(error).isprintable():
                self.note(f"not printable: {error!r}", data)
        except Exception as error:
            frames = [
                each for each in traceback.extract_tb(error.__traceback__) if "/prunus/" in each.filename
            ]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "this file"
            self.note(f"{type(error).__name__} in {where}: {str(error)[:100]}", data)
        finally:
            shutil.rmtree(place)

    def note(self, fault: str, data: bytes) -> None:
        """Count a fault; its first damage is kept."""
        self.counts["faults"] += 1
        self.faults.setdefault(fault, data)

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
            @given(damages(self.name))
            def each(data: bytes) -> None:
                self.trial(data, Path(folder))

            each()
        return self


def peak_mb() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Run the long form; returns 1 if there are faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000, help="trials of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name contains this")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    before, failed, total = peak_mb(), False, Counter[str]()
    names = [name for name in READERS if asked.only in name]
    for name in names:
        began = time.monotonic()
        tally = Tally(name).run(-(-asked.trials // len(names)), asked.seed)
        total += tally.counts
        took = time.monotonic() - began
        counts = "".join(f"{tally.counts[key]:>8}" for key in ("refused", "read", "faults"))
        print(f"{name:36}{counts}   {took:.0f} s", flush=True)
        for fault, data in tally.faults.items():
            print(f"    {fault}\n        {data[:SHOWN]!r}")
        failed |= bool(tally.faults)
    print(f"{total.total()} trials: {dict(total)}; memory grew by {peak_mb() - before:.0f} MB")
    return int(failed or peak_mb() - before > MOST_MB)


if __name__ == "__main__":
    random.seed(0)
    raise SystemExit(main())
