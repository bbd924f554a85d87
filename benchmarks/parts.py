r"""A small decoder of bytes, a quarter and half of its parameters away: by width, heads, MLPs, blocks, and all of them.

    python benchmarks/parts.py --seeds 0        # about an hour a seed on one core

The base is a decoder of six blocks, trained here on Python's language reference (see language.py). Every arm chooses
by Taylor's scores, per cost, among units of one kind, or of all kinds that compete in one budget; what is left is
repaired without labels and trained on, taught by the base, for the same steps. *whole* cuts nothing and trains the
base on as long. Perplexity per byte of held-out text on which no choice was made; lower is better. Time is that of a
forward pass of the example, as a share of the base's, in turns.
"""

import argparse
import statistics
import time
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


def network(data: Data, tokenizer: Tokenizer, seed: int) -> nn.Module:
    """Build the decoder, freshly initialised."""
    torch.manual_seed(seed)
    return Decoder(tokenizer.size, LENGTH, **SIZES)


def run_arm(
    arm: str, share: float, base: nn.Module, task_of: Any, asked: argparse.Namespace, seed: int
) -> dict:
    """Make one row; without figures where no cut of that kind meets the budget."""
    began_s, out = time.perf_counter(), asked.folder / f"{arm.replace(' ', '_')}_{share}_{seed}"
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
        "repaired": values.get("repaired", {}).get("perplexity"),
        "recovered": values["after"]["perplexity"],
        "time": times["small"].median_ms / times["base"].median_ms,
        "seconds": time.perf_counter() - began_s,
    }


def table(rows: list[dict[str, Any]], share: float) -> str:
    """Make a table in Markdown: means over the seeds that reach the budget, with the standard deviation of several."""
    lines = [["arm", "parameters", "multiply-adds", "time", "cut", "repaired", "recovered"]]
    lines.append(["---"] * len(lines[0]))
    for arm in ("base", "whole", *ARMS):
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
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
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
                        board.add(row | run_arm(arm, share, base, task_of, asked, seed))
    for share in asked.shares:
        print(f"\n{share:g} of the parameters\n\n{table(board.rows, share)}")


if __name__ == "__main__":
    main()
