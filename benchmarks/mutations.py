"""Whether the proof finds faults: cuts that are broken on purpose, in random networks.

    python benchmarks/mutations.py [--mutants 1000] [--seed 0]

Random networks of tests/lib/random_nets.py are shrunk by a right graph, then by graphs with one fault each: a tensor
cut at other units than the rest of its axis (by chance, one further, the first ones, two of them swapped), parts of a
layout exchanged, an integer attribute left as it was or following another axis. Weights are not compared (the small
model is made by the same wrong graph), so the run alone has to show the fault. A mutant that computes the same all the
same, or is a right cut of another kind, is told apart by running plain models (tests/lib/mutants.py), not by the proof.
Each is compared in float32, in float64, and as `verify` does. Goes to benchmarks/results/mutations.json.
"""

import argparse
import json
import platform
import random
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import prunus  # noqa: E402
from prunus.errors import PrunusError  # noqa: E402
from prunus.files import write_json  # noqa: E402
from tests.lib.mutants import campaign  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--per-network", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for row in campaign(options.seed, options.mutants, options.per_network):
        rows.append(row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
