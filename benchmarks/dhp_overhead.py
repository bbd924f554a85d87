"""What latents add to a training step, and what a search that cuts units out as it goes costs against plain training.

    python benchmarks/dhp_overhead.py [--networks resnet20 resnet56] [--rounds 15] [--processes 5] [--threads 2]

Steps (forward, backward, SGD; batch 128, bf16 autocast, channels-last, random images) of the plain network, of the
same with latents (mode exact, nothing cut out) and of the paper's hypernetwork, side by side; see timed.py. The plain
network runs twice a round: how far `plain again` is from 1 is the noise. Then, in so many processes as --searches says,
a whole search to half the multiply-accumulates, cutting as it goes, step by step beside a plain training of as many
steps: the ratio is of the sums. Goes to benchmarks/results/dhp_overhead[_THREADSthread].json.
"""

import argparse
import copy
import os
from functools import partial

import timed
import torch
import torch.nn.functional as F

import prunus
from prunus import zoo
from prunus.methods.dhp import DHP, Config

LR, BUDGET = 0.02, prunus.Budget(macs=0.5)
CONFIGS = {
    "plain": None,
    "plain again": None,
    "latents": Config(compact=False),
    "paper": Config(mode="paper"),
}


class Trained:
    """A network in training, plain or with a search beside it."""

    def __init__(self, network: torch.nn.Module, steps: int, config: Config | None):
        self.network = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
        self.search = None
        if config is not None:
            self.search = DHP(
                self.network, torch.zeros(1, *timed.IN_SHAPE), BUDGET, steps=steps, config=config
            )
        options = {"lr": LR, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        self.optimizer = torch.optim.SGD(self.network.parameters(), **options)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(self.network(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.search is not None:
            self.search.step(self.optimizer)


def trained(network: str, steps: int, configs: dict[str, Config | None]) -> dict[str, partial]:
    """A step of each."""
    torch.manual_seed(timed.SEED)
    plain, (x, y) = zoo.build(network, timed.CLASSES, timed.IN_SHAPE), timed.batch()
    return {label: partial(Trained(plain, steps, config).step, x, y) for label, config in configs.items()}


def of_steps(asked: argparse.Namespace, network: str) -> timed.Rows:
    """What a step takes with what is in CONFIGS, in this process."""
    far = 1000 * asked.rounds  # steps: far from the end, so that nothing is decided
    return timed.summary(timed.side_by_side(trained(network, far, CONFIGS), asked.rounds), to="plain")


def of_a_search(asked: argparse.Namespace, network: str) -> timed.Rows:
    """What a search takes, in this process."""
    steps = asked.search_steps
    pair = trained(network, steps, {"plain": None, "search": Config()})
    times = timed.side_by_side(pair, steps, warm_up=0)
    return {
        "whole search": {
            f"{clock}_ratio": sum(times["search"][clock]) / sum(times["plain"][clock])
            for clock in timed.CLOCKS
        }
    }


def main() -> None:
    parser = timed.arguments(__doc__.splitlines()[0], rounds=15, processes=5)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--searches", type=int, default=1)
    parser.add_argument("--search-steps", type=int, default=390, help="an epoch of CIFAR-10")
    asked = parser.parse_args()
    load, found = os.getloadavg()[0], {}
    searches = argparse.Namespace(**vars(asked) | {"processes": asked.searches})
    for name in asked.networks:
        found[name] = timed.in_processes(asked, of_steps, name)
        found[name] |= timed.in_processes(searches, of_a_search, name)
    timed.write("dhp_overhead", asked, load, found)


if __name__ == "__main__":
    main()
