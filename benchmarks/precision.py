"""What a training step takes in bf16 autocast and in full precision on this machine, side by side.

    python benchmarks/precision.py        writes benchmarks/results/precision.json

Steps (forward, backward; batch 64; channels-last) of the zoo's digits_resnet and resnet20, in turns; medians of 15
rounds after 3 that warm up. It says whether `train.recipe.choose_precision` picks the faster one here.
"""

import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from prunus import zoo
from prunus.machine import machine, versions
from prunus.train.recipe import choose_precision

ROUNDS, WARMUP, BATCH = 15, 3, 64
RESULT = Path(__file__).parent / "results" / "precision.json"


def step_ms(model: nn.Module, x: torch.Tensor, bf16: bool) -> float:
    """The milliseconds of one step."""
    began_s = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(x).float().square().mean()
    loss.backward()
    return 1e3 * (time.perf_counter() - began_s)


def main() -> None:
    """Measure both networks, print and store."""
    rows = {}
    for name in ("digits_resnet", "resnet20"):
        torch.manual_seed(0)
        model = zoo.build(name).to(memory_format=torch.channels_last)
        x = torch.randn(BATCH, *zoo.native_shape(name))
        rounds = [(step_ms(model, x, True), step_ms(model, x, False)) for _ in range(WARMUP + ROUNDS)]
        bf16_ms, full_ms = (statistics.median(times) for times in zip(*rounds[WARMUP:], strict=True))
        ratio = statistics.median(b / f for b, f in rounds[WARMUP:])
        rows[name] = {"bf16_ms": bf16_ms, "full_ms": full_ms, "bf16_over_full": ratio}
        print(f"{name}: bf16 {bf16_ms:.1f} ms, full precision {full_ms:.1f} ms, ratio {ratio:.2f}")
    print(f"advised here: precision={choose_precision()}")
    found = {"rows": rows, "advised": choose_precision(), "batch": BATCH, "seed": 0}
    found |= {"versions": versions(), "machine": machine(torch.device("cpu"), 1)}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
