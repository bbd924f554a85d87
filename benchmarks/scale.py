r"""Large language models: seconds and peak memory of each step, in a process of its own each.

    python benchmarks/scale.py [--only "proof" ...] [--threads 2]

The shapes are those of Llama: 8B and 70B are traced and selected from on the meta device, without weights. All else is
done with a model of 349 million parameters in float32 (1.30 GiB) with random weights, on 16 tokens, cut to half of
its parameters. Memory is the peak of what the process holds beyond what it held before the step (VmHWM, Linux), in GiB
and as a multiple of the model, the proof's also of its largest tensor. The checkpoint is of 2 GB in bfloat16, in shards
of 500 MB. `generate` decodes greedily after those tokens, dense and small in turns, and gives tokens a second. Goes to
benchmarks/results/scale.json; `--table` prints it for docs/shipping.md.
"""

import argparse
import ctypes
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus import scores, surgery
from prunus.machine import machine, versions
from prunus.refit import Moments, fit_in_order

SHIM = Path(__file__).parents[2] / "shared" / "tools"
if SHIM.exists():
    sys.path.insert(0, str(SHIM))
    import torchvision_cpu  # noqa: F401  (lets transformers import torchvision beside a CPU build of torch)
import transformers  # noqa: E402

RESULT = Path(__file__).parent / "results" / "scale.json"
GIB = 2**30
NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHAPES = {  # by these names; all have 8 groups of queries
    "small": (32000, 1024, 2816, 24, 16),
    "2 GB": (32000, 2048, 5632, 18, 16),
    "8B": (128256, 4096, 14336, 32, 32),
    "70B": (128256, 8192, 28672, 80, 64),
}
TOKENS = 16
NEW, TURNS = 8, 5  # tokens that are generated, and how often that is measured


def build(shape: str, **more: Any) -> torch.nn.Module:
    """A Llama of one of the shapes, with random weights on the present device."""
    sizes = dict(zip(NAMES, SHAPES[shape], strict=True))
    config = transformers.LlamaConfig(num_key_value_heads=8, **sizes, **more)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def tokens(vocabulary: int = 32000) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))}


def held(name: str) -> float:
    """Memory of this process from /proc/self/status: VmRSS, now, or VmHWM, the peak; in GiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / GIB


def watched(step: Callable[[], Any]) -> dict[str, float]:
    """The seconds of a step, and the most memory that it held beyond what was there before, in GiB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before would hide what the step takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = held("VmRSS"), time.perf_counter()
    step()
    return {"seconds": time.perf_counter() - start, "peak_gib": max(0.0, held("VmHWM") - before)}


def on_meta(shape: str) -> dict[str, float]:
    """Trace, and select half of the parameters by scores that are there."""
    with torch.device("meta"):
        model = build(shape)

    def run() -> None:
        graph = prunus.trace(model, tokens())
        found = {axis: torch.rand(entry.size) for axis, entry in graph.axes.items()}
        prunus.select(graph, found, prunus.Budget(params=0.5))

    return watched(run)


def of_small(step: str) -> dict[str, float]:
    """One step with the model of 1.30 GiB."""
    model = build("small")
    size = sum(p.nbytes for p in model.parameters()) / GIB
    graph = prunus.trace(model, tokens())
    found = scores.magnitude(model, graph)
    keep = prunus.select(graph, found, prunus.Budget(params=0.5), how="uniform")
    small = None if step == "cut" else prunus.shrink(model, graph, keep, verify="off")
    batches = [tokens()] * 4

    def loss(output: Any, _: Any) -> torch.Tensor:
        return output.logits[:, :-1].logsumexp(-1).mean()

    steps = {
        "cut": lambda: prunus.shrink(model, graph, keep, verify="off"),
        "forward pass": lambda: model(**tokens()),
        "proof": lambda: surgery.prove(model, graph, keep, small),
        "magnitude": lambda: scores.magnitude(model, graph),
        "taylor": lambda: scores.taylor(model, graph, loss, [(batch, None) for batch in batches]),
        "repair in order": lambda: fit_in_order(model, small, graph, keep, batches),
        "moments": lambda: Moments(model, graph, batches),
    }
    with torch.no_grad() if step == "forward pass" else torch.enable_grad():
        row = watched(steps[step])
    return row | {"of_model": row["peak_gib"] / size}


def generating() -> dict[str, float]:
    """Tokens a second of greedy decoding with the cache, dense and with half of the parameters, in turns."""
    model = build("small")
    graph = prunus.trace(model, tokens())
    keep = prunus.select(graph, scores.magnitude(model, graph), prunus.Budget(params=0.5), uniform=True)
    models = {"dense": model, "small": prunus.shrink(model, graph, keep, verify="off")}
    rates: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(1 + TURNS):
        for name, each in models.items():
            start = time.perf_counter()
            each.generate(**tokens(), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
            if turn:  # the first warms up
                rates[name].append(NEW / (time.perf_counter() - start))
    return {f"{name}_tokens_per_s": statistics.median(found) for name, found in rates.items()}


def on_disk() -> dict[str, float]:
    """Cut a checkpoint of 2 GB."""
    folder = Path(tempfile.mkdtemp())
    try:
        model = build("2 GB", dtype=torch.bfloat16).to(torch.bfloat16)
        model.save_pretrained(folder / "dense", max_shard_size="500MB")
        graph = prunus.trace(model, tokens())
        found, budget = scores.magnitude(model, graph), prunus.Budget(params=0.5)
        keep = prunus.select(graph, found, budget, uniform=True)
        bare = model.to("meta")
        shards = [path.stat().st_size for path in (folder / "dense").glob("*.safetensors")]
        row = watched(
            lambda: prunus.shrink_checkpoint(
                folder / "dense", keep, folder / "small", graph=graph, model=bare
            )
        )
        transformers.AutoModelForCausalLM.from_pretrained(folder / "small")
        return row | {"checkpoint_gib": sum(shards) / GIB, "of_shard": row["peak_gib"] * GIB / max(shards)}
    finally:
        shutil.rmtree(folder)


ROWS: dict[str, Callable[[], dict[str, float]]] = {
    "trace and select, 8B": lambda: on_meta("8B"),
    "trace and select, 70B": lambda: on_meta("70B"),
    **{
        step: (lambda step=step: of_small(step))
        for step in ("forward pass", "cut", "proof", "magnitude", "taylor", "repair in order", "moments")
    },
    "shrink_checkpoint, 2 GB": on_disk,
    "generate": generating,
}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| step | seconds | peak beyond what was there, GiB | as a multiple |", "|---|---|---|---|"]
    for name, row in rows.items():
        if "dense_tokens_per_s" in row:
            continue
        multiple = f"{row['of_model']:.2f} of the model" if "of_model" in row else ""
        multiple = f"{row['of_shard']:.2f} of the largest shard" if "of_shard" in row else multiple
        lines.append(f"| {name} | {row['seconds']:.1f} | {row['peak_gib']:.2f} | {multiple} |")
    if row := rows.get("generate"):
        dense, small = row["dense_tokens_per_s"], row["small_tokens_per_s"]
        lines += ["", f"`generate`: {small / dense:.2f} times as many tokens a second ({dense:.2f} dense)."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what is there, and stop")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one step, in this process
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.row:
        print(json.dumps(ROWS[asked.row]()))
        return
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    if not asked.table:
        for name in asked.only:
            command = [sys.executable, __file__, "--row", name, "--threads", str(asked.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            record["rows"][name] = json.loads(done.stdout.splitlines()[-1])
            print(name, record["rows"][name], flush=True)
        record |= {"versions": versions(), "machine": machine(torch.device("cpu"), 1)}
        record["load"] = os.getloadavg()[0]
        record["rows"] = {name: record["rows"][name] for name in ROWS if name in record["rows"]}
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record["rows"]))


if __name__ == "__main__":
    main()
