r"""A small decoder of bytes, a quarter and half of its parameters away: by width, heads, MLPs, blocks, and all of them.

    python benchmarks/parts.py --seeds 0        # about an hour a seed on one core

The base is a decoder of six blocks, trained here on Python's language reference (see language.py). Every arm chooses
by Taylor's scores, per cost, among units of one kind, or of all kinds that compete in one budget; what is left is
repaired without labels and trained on, taught by the base, for the same steps. *whole* cuts nothing and trains the
base on as long, without a teacher. The arms named tp cut with torch-pruning 1.6.1 by its own Taylor scores, computed
anew at each of its steps on the way; it has no repair and no blocks, and what it leaves is trained on like the rest:

    pip install --no-deps --target PEER torch-pruning==1.6.1
    PYTHONPATH=PEER python benchmarks/parts.py --arms "tp mlp" "tp all"

Perplexity per byte of held-out text on which no choice was made; lower is better. Time is that of a
forward pass of the example, as a share of the base's, in turns.
"""

import argparse
import copy
import statistics
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from board import Board
from language import load, maker, text_of, train_on, trained_base
from torch import nn

import prunus
from prunus.data import Data, Tokenizer
from prunus.errors import BudgetError
from prunus.latency import measure
from prunus.run import Settings
from prunus.train import fit, in_mode
from prunus.zoo.language import Decoder

SIZES = {"depth": 6, "width": 96, "heads": 6, "hidden": 384}
LENGTH = 128
ARMS = {
    "width": ("only=width",),
    "heads": ("only=heads",),
    "mlp": ("only=mlp",),
    "blocks": ("only=depth", "depth=True"),
    "all": ("depth=True",),
    "all but blocks": (),
}
# torch-pruning's arms, and in how many steps it would remove all; its ranking of heads fails if a step removes none
PEER = {
    "tp width": 100,
    "tp heads": 12,
    "tp mlp": 100,
    "tp all": 18,
}
PEER_BATCHES, PEER_BATCH_SIZE = 5, 16  # for its scores, at each step


def network(data: Data, tokenizer: Tokenizer, seed: int) -> nn.Module:
    """Build the decoder, freshly initialised."""
    torch.manual_seed(seed)
    return Decoder(tokenizer.size, LENGTH, **SIZES)


def run_arm(
    arm: str, share: float, base: nn.Module, task_of: Any, asked: argparse.Namespace, seed: int
) -> dict:
    """Make one row; without figures where no cut of that kind meets the budget."""
    out = asked.folder / f"{arm.replace(' ', '_')}_{share}_{seed}"
    settings = Settings(
        method="taylor",
        options=("how=per_cost", "prefer=quality", "floor=0.05", *ARMS[arm]),
        seed=seed,
        base_epochs=0,
        epochs=asked.epochs,
    )
    try:
        result = prunus.prune(
            task=task_of(base),
            budget=prunus.Budget(params=share),
            out=out,
            settings=settings,
            resume=out.exists(),
        )
    except BudgetError as error:
        return {"refused": str(error).partition(". ")[0]}
    values = result.values
    example = {"input_ids": torch.zeros(1, LENGTH, dtype=torch.int64)}
    times = measure({"base": base, "small": result.model}, example, seconds=2)
    return {
        "params": values["after"]["params"] / values["before"]["params"],
        "macs": values["after"]["macs"] / values["before"]["macs"],
        "cut": values["pruned"]["perplexity"],
        "repaired": values["repaired"]["test"]["perplexity"],
        "recovered": values["after"]["perplexity"],
        "time": times["small"].median_ms / times["base"].median_ms,
    }


def run_theirs(
    arm: str, share: float, base: nn.Module, task_of: Any, asked: argparse.Namespace, seed: int
) -> dict:
    """Make one row of torch-pruning's; without figures where it does not meet the budget."""
    task = task_of(base)
    try:
        small = theirs(arm, share, base, task.data, task.loss, seed)
    except BudgetError as error:
        return {"refused": str(error)}
    own, teacher = task.on(small), copy.deepcopy(base)
    before, after = prunus.trace(base, task.data.example), prunus.trace(small, task.data.example)
    row = {
        "params": prunus.params(after) / prunus.params(before),
        "macs": prunus.macs(after) / prunus.macs(before),
        "cut": task.evaluate(small, task.data.judged)["perplexity"],
    }
    recipe = replace(task.recipe("recover"), epochs=asked.epochs)
    folder = asked.folder / f"{arm.replace(' ', '_')}_{share}_{seed}"
    fit(small, own, recipe, teacher=teacher, folder=folder, seed=seed)
    example = {"input_ids": torch.zeros(1, LENGTH, dtype=torch.int64)}
    times = measure({"base": base, "small": small}, example, seconds=2)
    return row | {
        "recovered": task.evaluate(small, task.data.judged)["perplexity"],
        "time": times["small"].median_ms / times["base"].median_ms,
    }


def theirs(arm: str, share: float, base: Decoder, data: Data, loss: Any, seed: int) -> Decoder:
    """Cut a copy with torch-pruning until the share of the parameters is reached; it is told where the heads are."""
    import torch_pruning

    model, kind = copy.deepcopy(base), arm.removeprefix("tp ")
    attentions = [block.attention for block in model.blocks]
    roots = {
        "width": [model.embedding.tokens],
        "heads": [each.qkv for each in attentions],
        "mlp": [block.up for block in model.blocks],
    }
    pruner = torch_pruning.pruner.BasePruner(
        model,
        data.example,
        importance=torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=1.0,
        head_pruning_ratio=1.0,
        iterative_steps=PEER[arm],
        num_heads={each.qkv: each.heads for each in attentions},
        prune_num_heads=kind in ("heads", "all"),
        ignored_layers=[model.linear, *ignored(model, roots, kind)],
    )
    whole = sum(each.numel() for each in base.parameters())
    batches = list(islice(data.train.batches(PEER_BATCH_SIZE, seed=seed), PEER_BATCHES))
    for _ in range(PEER[arm]):
        model.zero_grad()
        with in_mode(model, False):
            for x, y in batches:
                loss(model(**x), y).backward()
        pruner.step()
        if not all(pruner.num_heads.values()):
            raise BudgetError("torch-pruning removes all heads of a layer")
        for each in attentions:
            each.heads = pruner.num_heads[each.qkv]
            each.head_width = each.qkv.out_features // (3 * each.heads)
        if sum(each.numel() for each in model.parameters()) <= share * whole:
            break
    model.zero_grad()
    return model


def ignored(model: nn.Module, roots: dict[str, list[nn.Module]], kind: str) -> list[nn.Module]:
    """List the layers that torch-pruning leaves alone: those of the other kinds, and those of the stream."""
    others = [layer for name, layers in roots.items() if kind not in (name, "all") for layer in layers]
    stream = [each for each in model.modules() if isinstance(each, nn.Embedding | nn.LayerNorm)]
    return others + (stream if kind in ("heads", "mlp") else [])


def table(rows: list[dict[str, Any]], share: float) -> str:
    """Make a table in Markdown: means over the seeds that reach the budget, with the standard deviation of several."""
    lines = [["arm", "parameters", "multiply-adds", "time", "cut", "repaired", "recovered"]]
    lines.append(["---"] * len(lines[0]))
    for arm in ("base", "whole", *ARMS, *PEER):
        tried = [row for row in rows if row["arm"] == arm and row.get("share", share) == share]
        found = [row for row in tried if "refused" not in row]
        if not tried:
            continue
        if not found:
            lines.append([arm, "not reached", *[""] * 5])
            continue
        label = arm if found == tried else f"{arm} ({len(found)} of {len(tried)} seeds)"
        shares = [
            f"{100 * statistics.mean(row[name] for row in found):.0f} %" if name in found[0] else ""
            for name in ("params", "macs", "time")
        ]
        figures = [
            text_of([row[name] for row in found], "perplexity")
            if all(row.get(name) is not None for row in found)
            else ""
            for name in ("cut", "repaired", "recovered")
        ]
        lines.append([label, *shares, *figures])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--base-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="after the base")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *PEER], default=list(ARMS))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.5], help="of the parameters")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/parts"), help="for what the arms keep")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and stop")
    asked = parser.parse_args()
    asked.experiment = "lm"  # of language.py
    torch.set_num_threads(asked.threads)
    setup = {
        "batch_size": asked.batch_size,
        "base_epochs": asked.base_epochs,
        "epochs": asked.epochs,
        **SIZES,
    }
    board = Board(Path(__file__).parent / "results" / "parts.json", setup)
    if not asked.table:
        data, tokenizer = load(asked)
        task_of = maker(data, tokenizer, asked)
        for seed in asked.seeds:
            base = trained_base(network(data, tokenizer, seed), task_of, asked, seed)
            if not board.has(arm="base", seed=seed):
                judged = task_of(base).evaluate(base, data.judged)
                board.add({"arm": "base", "seed": seed, "recovered": judged["perplexity"]})
            if not board.has(arm="whole", seed=seed):
                board.add({"arm": "whole", "seed": seed} | train_on(base, task_of, asked, seed))
            for share in asked.shares:
                for arm in asked.arms:
                    if not board.has(arm=arm, share=share, seed=seed):
                        row = {"arm": arm, "share": share, "seed": seed}
                        make = run_theirs if arm in PEER else run_arm
                        board.add(row | make(arm, share, base, task_of, asked, seed))
    for share in asked.shares:
        print(f"\n{share:g} of the parameters\n\n{table(board.rows, share)}")


if __name__ == "__main__":
    main()
