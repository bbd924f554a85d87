r"""Predicting bytes, and classifying texts: methods against their controls, at equal steps and cost, from one base.

    python benchmarks/language.py lm --seeds 0 1        # about 20 minutes a seed on one busy core
    python benchmarks/language.py text --seeds 0 1 2    # about 10 minutes a seed on one busy core

    base     a small decoder of bytes, or a small encoder that classifies, trained here
    dhp      searches for some epochs, then recovers for the others
    taylor   cuts the units with the smallest Taylor scores at once, and recovers for all the epochs
    l2       the same with L2 norms
    uniform  the same with L2 norms, with the same share of every axis
    random   the same share of every axis, drawn by lot
    whole    cuts nothing, and trains the base on for all the epochs

Each arm is a run of `prunus.prune`, proof included, in a folder of its own, at half of the multiply-adds. The texts are
those that Python brings along, so nothing is downloaded; which they were is stored with the rows:

    lm       the paragraphs of Python's language reference as `help()` shows it (pydoc_data.topics), each once
    text     pieces of at most 256 bytes of the standard library's sources; the class is the package, and all pieces
             of a file are on one side: to train on, or to test on; tokens of byte pairs, learned of those to train on

Figures are of held-out texts on which no choice was made: perplexity per byte (lower is better), accuracy. Rows that
are there with the same setup are not run again, and a run that was killed goes on where it was.
"""

import argparse
import copy
import hashlib
import importlib
import json
import statistics
import sysconfig
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from board import Board
from torch import nn

import prunus
from prunus.data import Data, Tokenizer, find_tokenizer, load_blocks, load_texts
from prunus.run import Settings
from prunus.tasks import LanguageModelling, Task, TextClassification
from prunus.train import fit
from prunus.zoo.language import Decoder, Encoder

ARMS = {
    "dhp": ("dhp", ()),
    "taylor": ("taylor", ()),
    "l2": ("magnitude", ("p=2",)),
    "uniform": ("magnitude", ("p=2", "how=uniform")),
    "random": ("random", ("how=uniform",)),
}
METRIC = {"lm": "perplexity", "text": "accuracy"}
LENGTH = {"lm": 128, "text": 96}  # tokens
WORDS = 2000  # tokens of byte pairs
PIECE = 256  # bytes
SIZES = {
    "lm": {"depth": 3, "width": 96, "heads": 6, "hidden": 384},
    "text": {"depth": 2, "width": 64, "heads": 4, "hidden": 256},
}
PACKAGES = (
    *("asyncio", "email", "encodings", "idlelib", "importlib", "multiprocessing"),
    *("tkinter", "unittest", "xml"),
)  # of the standard library, of at least ten files each
MOST_PIECES = 200  # of a package, to train on and to test on
TEST_SHARE = 0.25  # of the files
SHARE = 0.5  # of the multiply-adds


def write_reference(folder: Path) -> str:
    """Write the paragraphs of Python's language reference to one file, each once; returns its SPEC."""
    topics = importlib.import_module("pydoc_data.topics").topics
    seen = dict.fromkeys(part.strip("\n") for name in sorted(topics) for part in topics[name].split("\n\n"))
    file = folder / "reference.txt"
    file.write_text("\n\n".join(part for part in seen if part.strip()))
    return f"text:{file}"


def write_sources(folder: Path) -> str:
    """Write pieces of the standard library's sources, with their packages as classes; returns their SPEC."""
    root, rows = Path(sysconfig.get_paths()["stdlib"]), {"train": [], "test": []}
    for package in PACKAGES:
        found = {"train": [], "test": []}
        for file in sorted((root / package).rglob("*.py")):
            name = "test" if place(file.relative_to(root).as_posix()) < TEST_SHARE else "train"
            found[name] += pieces(file.read_text(errors="replace"))
        for name, texts in found.items():
            chosen = sorted(texts, key=place)[:MOST_PIECES]
            rows[name] += [json.dumps({"text": text, "label": package}) for text in chosen]
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    write_tokenizer(folder, [json.loads(line)["text"] for line in rows["train"]])
    return f"jsonl:{folder}"


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """Learn byte pairs from texts, and write them as tokenizer.json, beside a config.json with the padding."""
    tokenizers = importlib.import_module("tokenizers")  # of the extra hf
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=WORDS, special_tokens=["<pad>"], show_progress=False)
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"pad_token_id": 0}')


def place(text: str) -> float:
    """Hash a text to a place in 0..1, as good as drawn by lot."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64


def pieces(text: str) -> list[str]:
    """Cut a text into pieces of whole lines of at most 256 bytes; shorter ones than a quarter of that are dropped."""
    found, piece = [], ""
    for line in text.splitlines(keepends=True):
        if len((piece + line).encode()) > PIECE:
            found.append(piece)
            piece = ""
        piece += line if len(line.encode()) <= PIECE else ""
    return [each for each in found if len(each.strip()) >= PIECE // 4]


def load(asked: argparse.Namespace) -> tuple[Data, Tokenizer]:
    """Write the texts, and load them with what turns them into tokens."""
    folder = asked.folder / asked.experiment / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    if asked.experiment == "lm":
        return load_blocks(write_reference(folder), length=LENGTH["lm"]), find_tokenizer(None)
    spec = write_sources(folder)
    tokenizer = find_tokenizer(folder)
    return load_texts(spec, tokenizer, length=LENGTH["text"]), tokenizer


def network(data: Data, tokenizer: Tokenizer, asked: argparse.Namespace, seed: int) -> nn.Module:
    """Build the network, freshly initialised."""
    torch.manual_seed(seed)
    sizes = SIZES[asked.experiment]
    if asked.experiment == "lm":
        return Decoder(tokenizer.size, LENGTH["lm"], **sizes)
    assert data.classes is not None
    return Encoder(tokenizer.size, LENGTH["text"], data.classes, **sizes)


Make = Callable[[nn.Module], Task]


def maker(data: Data, tokenizer: Tokenizer, asked: argparse.Namespace) -> Make:
    """Make the function that makes the task of a model."""
    fields = {"precision": "no", "batch_size": asked.batch_size}
    kind = {"lm": LanguageModelling, "text": TextClassification}[asked.experiment]
    return lambda model: kind(model, data, fields, tokenizer=tokenizer, length=LENGTH[asked.experiment])


def trained_base(base: nn.Module, task_of: Make, asked: argparse.Namespace, seed: int) -> nn.Module:
    """Train the base in place; once, then it is read from its folder."""
    task = task_of(base)
    recipe = replace(task.recipe("scratch"), epochs=asked.base_epochs)
    fit(base, task, recipe, folder=asked.folder / asked.experiment / f"base_{seed}", seed=seed)
    return base


def run_arm(arm: str, base: nn.Module, task_of: Make, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Make one row."""
    method, options = ARMS[arm]
    epochs, began_s, key = asked.epochs, time.perf_counter(), METRIC[asked.experiment]
    if arm == "dhp":
        options, epochs = (f"epochs={asked.search_epochs}",), asked.epochs - asked.search_epochs
    out = asked.folder / asked.experiment / f"{arm}_{seed}"
    values = prunus.prune(
        task=task_of(base),
        method=method,
        budget=prunus.Budget(macs=SHARE),
        out=out,
        settings=Settings(options=options, seed=seed, base_epochs=0, epochs=epochs),
        resume=out.exists(),
    ).values
    return {
        "macs": values["after"]["macs"] / values["before"]["macs"],
        "params": values["after"]["params"] / values["before"]["params"],
        "proof": values["verified"]["max_abs_error"],
        "pruned": values["pruned"][key],
        "recovered": values["after"][key],
        "seconds": time.perf_counter() - began_s,
    }


def train_on(base: nn.Module, task_of: Make, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train the base on without cutting anything, as long as the arms recover; make its row."""
    whole, began_s = copy.deepcopy(base), time.perf_counter()
    task = task_of(whole)
    recipe = replace(task.recipe("recover"), epochs=asked.epochs)
    fit(whole, task, recipe, folder=asked.folder / asked.experiment / f"whole_{seed}", seed=seed)
    judged = task.evaluate(whole, task.data.judged)[METRIC[asked.experiment]]
    return {"recovered": judged, "seconds": time.perf_counter() - began_s}


def table(rows: list[dict[str, Any]], key: str) -> str:
    """Make a table in Markdown: means over the seeds, with the standard deviation where there are several."""
    head = ["arm", "multiply-adds", "parameters", f"{key} cut", f"{key} recovered", "from whole, by seed"]
    lines = [head, ["---"] * len(head)]
    whole = {row["seed"]: row["recovered"] for row in rows if row["arm"] == "whole"}
    for arm in ("base", "whole", *ARMS):
        found = [row for row in rows if row["arm"] == arm]
        if found:
            shares = [
                f"{100 * statistics.mean(row.get(name, 1) for row in found):.1f} %"
                for name in ("macs", "params")
            ]
            recovered = text_of([row["recovered"] for row in found], key)
            cut, apart = "", ""
            if arm in ARMS:
                cut = text_of([row["pruned"] for row in found], key)
                apart = text_of([row["recovered"] - whole[row["seed"]] for row in found], key, sign="+")
            lines.append([arm, *shares, cut, recovered, apart])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text_of(values: list[float], key: str, sign: str = "") -> str:
    """Write the mean of a metric, with "+" before it if `sign` says so, and its deviation over seeds."""
    factor, unit = (100, " %") if key == "accuracy" else (1, "")
    spread = f" ± {factor * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{factor * statistics.mean(values):{sign}.2f}{spread}{unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=METRIC)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--base-epochs", type=int, default=8)
    parser.add_argument("--search-epochs", type=int, default=1, help="of dhp")
    parser.add_argument("--epochs", type=int, default=3, help="after the base; of dhp its search included")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/language"), help="for what the arms keep")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    key = METRIC[asked.experiment]
    data, tokenizer = load(asked)
    task_of = maker(data, tokenizer, asked)
    out = asked.out or Path(__file__).parent / "results" / f"language_{asked.experiment}.json"
    setup = {
        name: value for name, value in vars(asked).items() if name not in ("arms", "seeds", "folder", "out")
    }
    assert data.fingerprint is not None
    content = json.dumps(data.fingerprint.to_json() | {"splits": {}}, sort_keys=True).encode()
    setup |= {"texts": hashlib.blake2b(content, digest_size=8).hexdigest()}
    setup |= {"examples": {name: len(split) for name, split in data.splits.items()}}
    board = Board(out, setup)
    for seed in asked.seeds:
        base = trained_base(network(data, tokenizer, asked, seed), task_of, asked, seed)
        if not board.has(arm="base", seed=seed):
            steps = asked.base_epochs * data.train.steps(asked.batch_size)
            judged = task_of(base).evaluate(base, data.judged)
            board.add({"arm": "base", "seed": seed, "steps": steps, "recovered": judged[key]})
        if not board.has(arm="whole", seed=seed):
            board.add({"arm": "whole", "seed": seed} | train_on(base, task_of, asked, seed))
        for arm in asked.arms:
            if not board.has(arm=arm, seed=seed):
                board.add({"arm": arm, "seed": seed} | run_arm(arm, base, task_of, asked, seed))
    print(table(board.rows, key))


if __name__ == "__main__":
    main()
