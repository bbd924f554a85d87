"""How fast are networks whose widths are multiples of 1, 2, 4, 8 or 16?

    python benchmarks/round_to.py [--model resnet20] [--rounds 15] [--processes 5] [--threads 2]

One training step (forward and backward, batch 128, bf16 autocast, channels-last) of the dense network and of the
same cut to half its multiply-accumulates with each `round_to`, side by side; see timed.py. `auto` is what `select`
does unless told otherwise. The dense network runs twice a round: how far `dense again` is from 1 is the noise, and
differences below it say nothing. CPU time is given beside wall time, because other programs stretch it less; with
one thread it holds no waiting. Goes to benchmarks/results/round_to[_MODEL][_THREADSthread].json.
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

GRIDS = {"auto": None, "1": 1, "2": 2, "4": 4, "8": 8, "16": 16}


def candidates(name: str) -> tuple[dict[str, torch.nn.Module], dict[str, int]]:
    """The dense network and its cuts, and the multiply-accumulates of each."""
    torch.manual_seed(timed.SEED)
    model = zoo.build(name, timed.CLASSES, timed.IN_SHAPE)
    graph = prunus.trace(model, torch.zeros(1, *timed.IN_SHAPE))
    scores = prunus.scores.magnitude(model, graph)
    networks = {"dense": model, "dense again": copy.deepcopy(model)}
    macs = dict.fromkeys(networks, prunus.macs(graph))
    for label, grid in GRIDS.items():
        try:
            keep = prunus.select(graph, scores, prunus.Budget(macs=0.5), round_to=grid)
        except prunus.errors.BudgetError as error:
            print(f"{label}: {error}")
            continue
        networks[label], macs[label] = prunus.shrink(model, graph, keep), prunus.macs(graph, keep)
    return networks, macs


def step(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """One forward and backward pass."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    loss.backward()


def measured(asked: argparse.Namespace, name: str) -> timed.Rows:
    """What a step of each takes, in this process."""
    networks, macs = candidates(name)
    x, y = timed.batch()
    actions = {
        label: partial(step, network.train().to(memory_format=torch.channels_last), x, y)
        for label, network in networks.items()
    }
    rows = timed.summary(timed.side_by_side(actions, asked.rounds), to="dense")
    return {label: {"macs": macs[label]} | row for label, row in rows.items()}


def main() -> None:
    parser = timed.arguments(__doc__.splitlines()[0], rounds=15, processes=5)
    parser.add_argument("--model", default="resnet20")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    rows = timed.in_processes(asked, measured, asked.model)
    timed.write("round_to" + f"_{asked.model}" * (asked.model != "resnet20"), asked, load, rows)


if __name__ == "__main__":
    main()
