"""What a step of PASS's search costs beside the passes through the masked network that it needs.

    python benchmarks/pass_overhead.py [--networks resnet20 resnet56] [--rounds 40] [--threads 2]

`masked` is forward and backward of the frozen network with fixed masks, their gradients included (batch 128, bf16
autocast, channels-last, random pictures, half the multiply-adds); `step` the whole of a step: prompt, scores,
selection, the same passes, Adam, counting. Side by side: each round times all of them once, in turn, and a ratio is the
median over rounds of that round's time over the masked one's; `masked again` is the noise. `selection` is from scores
to exact masks, as a share of the step. Goes to benchmarks/results/pass_overhead[_THREADSthread].json.
"""

import argparse
import os
import statistics
import time

import torch
import torch.nn.functional as F
from round_to import BATCH, CLASSES, IN_SHAPE, SEED, summary, write_times

import prunus
from prunus import zoo
from prunus.methods.pass_ import PASS, Config

BUDGET, LR = prunus.Budget(macs=0.5), 1e-4


class Searched:
    """A search of its own on a network, and the ways to take a step of it."""

    def __init__(self, network: torch.nn.Module):
        network = network.to(memory_format=torch.channels_last)
        self.search = PASS(
            network, torch.zeros(1, *IN_SHAPE), BUDGET, steps=10_000, config=Config(snapshots=0)
        )
        self.optimizer = torch.optim.Adam(self.search.learned(), lr=LR)
        self.masks = self.search.kept.float().requires_grad_()

    def masked(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Forward and backward with masks that stay as they are."""
        self.masks.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(self.search.run(self.masks, x), y)
        loss.backward()

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """All that a step of the search does."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(self.search(x), y)
        loss.backward()
        self.optimizer.step()
        self.search.step()


def timed_ms(action, *args: object) -> tuple[float, float]:
    """Milliseconds on the wall's clock and of processor time."""
    wall, busy = time.perf_counter(), time.process_time()
    action(*args)
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - busy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    load, found = os.getloadavg()[0], {}
    for name in asked.networks:
        torch.manual_seed(SEED)
        searched = Searched(zoo.build(name, CLASSES, IN_SHAPE))
        x = torch.randn(BATCH, *IN_SHAPE).to(memory_format=torch.channels_last)
        y = torch.randint(CLASSES, (BATCH,))
        actions = {"masked": searched.masked, "masked again": searched.masked, "step": searched.step}
        times: dict[str, list] = {label: [] for label in (*actions, "selection")}
        for number in range(asked.rounds + 3):
            for label in list(actions)[:: 1 if number % 2 else -1]:
                times[label].append(timed_ms(actions[label], x, y))
            times["selection"].append(timed_ms(searched.search.chosen, searched.search.scores()))
        times = {label: each[3:] for label, each in times.items()}
        rows = {label: summary(times[label], times["masked"]) for label in actions}
        shares = [a[0] / b[0] for a, b in zip(times["selection"], times["step"], strict=True)]
        rows["selection"] = {
            "wall_ms": statistics.median(wall for wall, _ in times["selection"]),
            "share_of_step": statistics.median(shares),
        }
        found[name] = rows
        for label, row in rows.items():
            print(f"{name:<10}{label:<14}", {key: round(value, 4) for key, value in row.items()}, flush=True)
    write_times("pass_overhead", asked, load, found)


if __name__ == "__main__":
    main()
