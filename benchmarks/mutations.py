"""Whether the proof finds faults: cuts that are broken on purpose, in random networks.

    python benchmarks/mutations.py [--mutants 1000] [--seed 0]

Random networks of tests/lib/random_nets.py are cut by a right graph, then by graphs with one fault each: a tensor cut
at other units than the rest of its axis (by chance, one further, the first ones, two of them swapped), parts of a
layout exchanged, an integer attribute left as it was or following another axis. Weights are not compared (the small
model is made by the same wrong graph), so the run alone has to show the fault. A mutant that computes the same all the
same, or is a right cut of another kind, is told apart by running plain models (tests/lib/mutants.py), not by the
proof. Each is compared in float32 and in float64. Goes to benchmarks/results/mutations.json.
"""

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

import prunus
from prunus.files import write_json
from prunus.surgery import attempts

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lib.mutants import campaign

LIMITS = {"float32": attempts.NO_DOUBT, "float64": attempts.TOLERANCES[torch.float64]}


def summary(rows: list[dict]) -> dict:
    """Counts by kind, what was missed, and how far apart rounding and faults lie."""
    right = [row for row in rows if row["kind"] == "none"]
    wrong = [row for row in rows if row["verdict"] == "wrong"]
    same = [row for row in rows if row["verdict"] == "right" and row["kind"] != "none"]
    return {
        "networks": len(right),
        "wrong": len(wrong),
        "wrong_by_kind": Counter(row["kind"] for row in wrong),
        "right_all_the_same": len(same),
        "right_all_the_same_by_kind": Counter(row["kind"] for row in same),
        "do_not_run": sum(row["verdict"] == "does not run" for row in rows),
        "limits": LIMITS,
        "found": {
            d: sum(row[d] > limit for row in wrong) / max(1, len(wrong)) for d, limit in LIMITS.items()
        },
        "largest_error_of_right_cuts": {d: max(row[d] for row in right) for d in LIMITS},
        "smallest_error_of_wrong_cuts": {d: min(row[d] for row in wrong) for d in LIMITS},
        "missed": [row for row in wrong if any(row[d] <= limit for d, limit in LIMITS.items())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--per-network", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mutations.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for row in campaign(arguments.seed, arguments.mutants, arguments.per_network):
        rows.append(row)
        if len(rows) % 100 == 0:
            print(len(rows), Counter(each["verdict"] for each in rows), flush=True)
    result = summary(rows)
    print(result)
    versions = {"torch": torch.__version__, "prunus": prunus.__version__, "seed": arguments.seed}
    write_json(arguments.out, result | versions)


if __name__ == "__main__":
    main()
