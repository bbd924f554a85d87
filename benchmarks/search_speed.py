r"""What a search for widths costs, beside the passes through the networks that it cannot do without.

    python benchmarks/search_speed.py --data parquet:../shared/data/cifar10 \
        --weights ../shared/weights/cifar10_resnet20.safetensors

queries     width vectors whose multiply-adds are computed in a second, in one query.
candidate   one network of the budget after another is tried in four ways, in turn, on the same held-out images: in
            passes alone (of the network made before: the `calibration` images and the `images`), by a search with
            the weights of the base, by one with a PruningNet's, and in the original's way: the PruningNet makes the
            weights anew for each batch, and moving averages over `original` images renew the norms. Images are
            kept in memory for all four, batches are of one size, and nobody drops a network early. `to_passes` is the
            time over that of the passes alone, `original_to_ours` the original's over that of our PruningNet's.
search      a whole search, its race and the comparison of the last few included: how long, on how many images, and
            which share of the time is spent outside of calls of networks. (The sums that renew norms are spent inside
            of them; `candidate` shows what they cost.) `original_to_search` is the original's time for a network,
            as above, over the search's for one of its networks.
Medians over the networks, of the wall's clock and of processor time. Goes to benchmarks/results/search_speed.json.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from timed import cpu

import prunus
from prunus import zoo
from prunus.data import load_data
from prunus.files import write_json
from prunus.methods.metapruning import Config
from prunus.methods.metapruning.method import Inputs, make_supernet, prepare, seed_widths
from prunus.progress import bar
from prunus.run import RunFolder
from prunus.search import (
    CHUNKS,
    Builder,
    ImageEvaluator,
    Supernet,
    Widths,
    calibration_set,
    moving_norms,
    sample,
    search,
)
from prunus.selection import Budget
from prunus.surgery import cut
from prunus.tasks import Classification
from prunus.train import in_mode
from prunus.zoo import load_weights

SEED, BUDGET, QUERIES = 0, Budget(macs=0.5), 100_000
Timed = tuple[float, float]  # seconds of the wall's clock and of processor time


def timed(work: Callable[[], object]) -> Timed:
    """How long it takes."""
    wall, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - busy


def query_rate(at: Inputs, rounds: int) -> float:
    """Width vectors priced in a second."""
    genes = sample(at.space.counts, QUERIES, np.random.default_rng(SEED))
    at.room.costs(genes[:2])
    return QUERIES / statistics.median(timed(lambda: at.room.costs(genes))[0] for _ in range(rounds))


def passes(small: torch.nn.Module, trial: ImageEvaluator) -> None:
    """What nobody can do without."""
    with torch.no_grad(), in_mode(small, False):
        for pictures in (trial.maker.calibration, trial.held_out):
            for x, _ in pictures.between(0, len(pictures)):
                small(x)


def tried(trial: ImageEvaluator, widths: Widths) -> None:
    """A network made, its norms renewed, and scored on all images, in a search's parts."""
    ends = [0, *(end for end in CHUNKS if end < trial.images), trial.images]
    for first, end in pairwise(ends):
        trial.score(widths, first, end)


def made_each_time(net: Supernet, widths: Widths) -> torch.nn.Module:
    """A network whose weights a PruningNet makes anew whenever it is called."""
    small, keep = net.network(widths), net.keep(widths)

    @torch.no_grad()
    def made(*_) -> None:
        for name, weight in cut(net.make_weights(widths), net.graph, keep).items():
            small.get_parameter(name).copy_(weight)

    small.register_forward_pre_hook(made)
    return small


def side_by_side(task, at: Inputs, config: Config, networks: int, original: int) -> dict[str, list[Timed]]:
    """The seconds of each way for each network, in turn, after one network to warm up."""
    net = make_supernet(task, at.room, None, replace(config, weights="hypernet", start="given"), SEED)
    far = calibration_set(at.parts.train, original, SEED)
    makers = {
        "inherit": at.maker,
        "hypernet": Builder(net.network, at.maker.calibration),
        "original": Builder(lambda widths: made_each_time(net, widths), far, moving_norms),
    }
    trials = {name: ImageEvaluator(task, maker, at.parts.search) for name, maker in makers.items()}
    times = {name: [] for name in ("passes", *trials)}
    for genes in at.room.random(networks + 1, np.random.default_rng(SEED)):
        widths = at.space.widths(genes)
        small = at.maker(widths)
        ways = {"passes": lambda small=small: passes(small, trials["inherit"])}
        ways |= {name: lambda trial=trial, w=widths: tried(trial, w) for name, trial in trials.items()}
        for name in list(ways)[:: 1 if len(times["passes"]) % 2 else -1]:
            times[name].append(timed(ways[name]))
    return {name: each[1:] for name, each in times.items()}


def ratio(ours: list[Timed], others: list[Timed]) -> dict[str, float]:
    """The median over networks of one time over the other."""
    pairs = list(zip(ours, others, strict=True))
    return {
        clock: statistics.median(a[i] / b[i] for a, b in pairs) for i, clock in enumerate(("wall", "cpu"))
    }


def whole_search(task, at: Inputs, config: Config) -> dict:
    """A search, with a clock in every call of a network."""
    inside = [0.0, 0.0]

    def network(widths: Widths) -> torch.nn.Module:
        small, began = at.provider.network(widths), []

        def start(*_) -> None:
            began[:] = time.perf_counter(), time.process_time()

        def stop(*_) -> None:
            inside[0] += time.perf_counter() - began[0]
            inside[1] += time.process_time() - began[1]

        small.register_forward_pre_hook(start)
        small.register_forward_hook(stop)
        return small

    maker = Builder(network, at.maker.calibration)
    trials = [ImageEvaluator(task, maker, part) for part in (at.parts.search, at.parts.confirm)]
    seeds = seed_widths(at.space.graph, at.ranks, BUDGET, at.room.price, config)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        options = {"seeds": seeds, "confirm": trials[1], "journal": Path(folder) / "search.jsonl"}
        wall, busy = timed(
            lambda: found.append(
                search(at.space, BUDGET, trials[0], how=config.strategy(), progress=bar, **options)
            )
        )
    looked_at = [*found[0].candidates, *found[0].confirmed]
    images = len(found[0].candidates) * trials[0].images + len(found[0].confirmed) * trials[1].images
    calibrated = len(looked_at) * len(maker.calibration)
    return {
        "networks": len(found[0].candidates),
        "confirmed": len(found[0].confirmed),
        "dropped": sum(not each.complete for each in looked_at),
        "pictures": sum(each.images for each in looked_at) + calibrated,
        "pictures_without_race": images + calibrated,
        "seconds": wall,
        "outside_of_calls": {"wall": 1 - inside[0] / wall, "cpu": 1 - inside[1] / busy},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", help="a file; random ones if not given")
    for name in ("images", "calibration", "generations", "population"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Config, name))
    parser.add_argument("--original", type=int, default=20_000, help="images, as in the paper")
    parser.add_argument("--networks", type=int, default=7, help="that are tried in all ways")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search_speed.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    load, data = os.getloadavg()[0], load_data(asked.data, seed=SEED)
    torch.manual_seed(SEED)
    model = zoo.build(asked.network, data.classes, tuple(data.example.shape[1:]))
    if asked.weights:
        load_weights(model, asked.weights)
    task = Classification(model, data)
    names = ("images", "calibration", "generations", "population")
    config = Config(**{name: getattr(asked, name) for name in names}).resolved()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder), {"seed": SEED})
        run.begin()
        at = prepare(task, BUDGET, config, run)
    found = {"queries_a_second": query_rate(at, asked.networks)}
    times = side_by_side(task, at, config, asked.networks, asked.original)
    found["candidate"] = {
        "seconds": {name: statistics.median(wall for wall, _ in each) for name, each in times.items()},
        "to_passes": {name: ratio(each, times["passes"]) for name, each in times.items()},
        "original_to_ours": ratio(times["original"], times["hypernet"]),
    }
    print(found, flush=True)
    found["search"] = each = whole_search(task, at, config)
    each["original_to_search"] = found["candidate"]["seconds"]["original"] / (
        each["seconds"] / each["networks"]
    )
    print(each)
    left_out = ("data", "weights", "out")
    setup = {name: value for name, value in vars(asked).items() if name not in left_out}
    setup |= {"pictures": len(at.parts.search), "budget": str(BUDGET), "seed": SEED, "chunks": CHUNKS}
    setup["trained"] = bool(asked.weights)
    machine = {"processor": cpu(), "cores": os.cpu_count(), "load_before": load}
    machine |= {"torch": torch.__version__, "prunus": prunus.__version__}
    write_json(asked.out, {"setup": setup, "machine": machine} | found)


if __name__ == "__main__":
    main()
