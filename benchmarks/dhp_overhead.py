"""What latents add to a training step, and what a search that cuts units out as it goes costs against plain training.

    python benchmarks/dhp_overhead.py [--networks resnet20 resnet56] [--rounds 40] [--threads 2]

Steps (forward, backward, SGD; batch 128, bf16 autocast, channels-last, random pictures) of the plain network, of the
same with latents (mode exact, nothing cut out) and of the paper's hypernetwork, side by side: each round times all of
them once, in turn, and a ratio is the median over rounds of that round's time over the plain one's. The plain network
runs twice a round: how far `plain again` is from 1 is the noise. Then a whole search to half the multiply-accumulates,
cutting as it goes, step by step beside a plain training of as many steps: the ratio is of the sums.
Goes to benchmarks/results/dhp_overhead[_THREADSthread].json.
"""

import argparse
import copy
import os
import time

import torch
import torch.nn.functional as F
from round_to import BATCH, CLASSES, IN_SHAPE, SEED, summary, write_times

import prunus
from prunus import zoo
from prunus.methods.dhp import DHP, Config

LR, BUDGET = 0.02, prunus.Budget(macs=0.5)


class Trained:
    """A network in training, plain or with a search beside it."""

    def __init__(self, network: torch.nn.Module, steps: int, config: Config | None):
        self.network = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
        self.search = None
        if config is not None:
            self.search = DHP(self.network, torch.zeros(1, *IN_SHAPE), BUDGET, steps=steps, config=config)
        options = {"lr": LR, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        self.optimizer = torch.optim.SGD(self.network.parameters(), **options)

    def step_ms(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        """One step, in milliseconds on the wall's clock and of processor time."""
        wall, busy = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(self.network(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.search is not None:
            self.search.step(self.optimizer)
        return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - busy)


def side_by_side(trained: dict[str, Trained], rounds: int, warm_up: int) -> dict[str, list]:
    """Milliseconds of each in each round, in turn, the order turned round every second time."""
    x = torch.randn(BATCH, *IN_SHAPE).to(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (BATCH,))
    times = {label: [] for label in trained}
    for number in range(rounds + warm_up):
        for label in list(trained)[:: 1 if number % 2 else -1]:
            times[label].append(trained[label].step_ms(x, y))
    return {label: each[warm_up:] for label, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--search-steps", type=int, default=390, help="an epoch of CIFAR-10")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    load, found = os.getloadavg()[0], {}
    for name in asked.networks:
        torch.manual_seed(SEED)
        network = zoo.build(name, CLASSES, IN_SHAPE)
        configs = {
            "plain": None,
            "plain again": None,
            "latents": Config(compact=False),
            "paper": Config(mode="paper"),
        }
        far = 1000 * asked.rounds  # steps: far from the end, so that nothing is decided
        trained = {label: Trained(network, far, config) for label, config in configs.items()}
        times = side_by_side(trained, asked.rounds, warm_up=3)
        found[name] = {label: summary(each, times["plain"]) for label, each in times.items()}
        steps = asked.search_steps
        pair = {"plain": Trained(network, steps, None), "search": Trained(network, steps, Config())}
        times = side_by_side(pair, steps, warm_up=0)
        totals = {label: [sum(column) for column in zip(*each, strict=True)] for label, each in times.items()}
        ratios = [a / b for a, b in zip(totals["search"], totals["plain"], strict=True)]
        found[name]["whole search"] = {"wall_to_dense": ratios[0], "cpu_to_dense": ratios[1], "steps": steps}
        for label, row in found[name].items():
            print(f"{name:<10}{label:<14}", {key: round(value, 3) for key, value in row.items()}, flush=True)
    write_times("dhp_overhead", asked, load, found)


if __name__ == "__main__":
    main()
