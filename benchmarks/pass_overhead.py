"""What a step of PASS's search costs beside the passes through the masked network that it needs.

    python benchmarks/pass_overhead.py [--networks resnet20 resnet56] [--rounds 15] [--processes 5] [--threads 2]

`masked` is forward and backward of the frozen network with fixed masks, their gradients included (batch 128, bf16
autocast, channels-last, random images, half the multiply-adds); `step` the whole of a step: prompt, scores,
selection, the same passes, Adam, counting; `no prompt` the same of a search without one. All side by side; see
timed.py. `masked again` is the noise. `selection` is from scores to exact masks, its ratio over the step. Goes to
benchmarks/results/pass_overhead[_THREADSthread].json.
"""

import argparse
import os
from functools import partial

import timed
import torch
import torch.nn.functional as F

import prunus
from prunus import zoo
from prunus.methods.pass_ import PASS, Config

BUDGET, LR = prunus.Budget(macs=0.5), 1e-3


class Searched:
    """A search of its own on a network, and the ways to take a step of it."""

    def __init__(self, network: torch.nn.Module, config: Config):
        example = torch.zeros(1, *timed.IN_SHAPE)
        self.search = PASS(network, example, BUDGET, steps=10_000, config=config)
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


def of_steps(asked: argparse.Namespace, name: str) -> timed.Rows:
    """What the steps take, in this process."""
    torch.manual_seed(timed.SEED)
    network = zoo.build(name, timed.CLASSES, timed.IN_SHAPE).to(memory_format=torch.channels_last)
    searched = Searched(network, Config(snapshots=0))
    without = Searched(network, Config(snapshots=0, prompt="none"))
    x, y = timed.batch()
    scores = searched.search.scores()
    actions = {
        "masked": partial(searched.masked, x, y),
        "masked again": partial(searched.masked, x, y),
        "step": partial(searched.step, x, y),
        "no prompt": partial(without.step, x, y),
        "selection": partial(searched.search.choose_units, scores),
    }
    times = timed.side_by_side(actions, asked.rounds)
    rows = timed.summary(times, to="masked")
    return rows | {"selection": timed.summary(times, to="step")["selection"]}


def main() -> None:
    parser = timed.arguments(__doc__.splitlines()[0], rounds=15, processes=5)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    found = {name: timed.in_processes(asked, of_steps, name) for name in asked.networks}
    timed.write("pass_overhead", asked, load, found)


if __name__ == "__main__":
    main()
