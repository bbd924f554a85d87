"""Is a network of half the blocks as much faster as its multiply-adds are fewer?

    python benchmarks/depth_speed.py [--rounds 15] [--processes 3] [--threads 1]

The forward pass of a vision transformer and of a decoder, 12 blocks each, whole, with 6 of their blocks skipped, and
with units removed to as few multiply-adds, side by side in float32; see timed.py. The dense network runs twice a round:
how far `dense again` is from 1 is the noise. `reached` is the share of time that is saved over the share of
multiply-adds that is. CPU time decides, because other programs stretch it less than wall time, which stands beside it.
Goes to benchmarks/results/depth_speed[_THREADSthread].json.
"""

import argparse
import copy
import os
from collections.abc import Callable

import timed
import torch
from torch import nn

import prunus
from prunus import zoo
from prunus.zoo.language import Decoder

SKIPPED = (1, 3, 5, 7, 9, 10)  # of 12
VOCABULARY, LENGTH, BATCH = 258, 128, 16


def vit() -> tuple[nn.Module, torch.Tensor]:
    """DeiT-Ti's network on images of 32x32 pixels."""
    return zoo.build("vit_tiny", timed.CLASSES, timed.IN_SHAPE), torch.randn(BATCH, *timed.IN_SHAPE)


def decoder() -> tuple[nn.Module, torch.Tensor]:
    """A decoder of the same widths on texts of 128 tokens."""
    model = Decoder(VOCABULARY, LENGTH, depth=12, width=192, heads=3, hidden=768)
    return model, torch.randint(VOCABULARY, (BATCH, LENGTH))


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {"vit_tiny": vit, "decoder": decoder}


def measured(asked: argparse.Namespace, name: str) -> timed.Rows:
    """What a forward pass of each network takes, in this process."""
    torch.manual_seed(timed.SEED)
    model, x = MODELS[name]()
    graph = prunus.trace(model.eval(), x[:1])
    skipped = {f"blocks.{number}:depth": [] for number in SKIPPED}
    share = prunus.macs(graph, skipped) / prunus.macs(graph)
    narrow = prunus.select(
        graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=share), how="uniform"
    )
    keeps = {"dense": {}, "dense again": {}, "6 blocks skipped": skipped, "units removed": narrow}
    networks = {
        label: prunus.shrink(model, graph, keep).eval() if keep else copy.deepcopy(model)
        for label, keep in keeps.items()
    }
    with torch.no_grad():
        actions = {label: lambda network=network: network(x) for label, network in networks.items()}
        rows = timed.summary(timed.side_by_side(actions, asked.rounds), to="dense")
    left = {label: prunus.macs(graph, keep) / prunus.macs(graph) for label, keep in keeps.items()}
    return {label: {"macs": left[label]} | row for label, row in rows.items()}


def reached(row: dict[str, float]) -> float:
    """The share of time that is saved, over the share of multiply-adds that is."""
    return (1 - row["cpu_ratio"]) / (1 - row["macs"])


def main() -> None:
    parser = timed.arguments(__doc__.splitlines()[0], rounds=15, processes=3)
    parser.set_defaults(threads=1)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    networks = {name: timed.in_processes(asked, measured, name) for name in MODELS}
    for row in (row for rows in networks.values() for row in rows.values() if row["macs"] < 1):
        row["reached"] = reached(row)
    timed.write("depth_speed", asked, load, networks, BATCH)


if __name__ == "__main__":
    main()
