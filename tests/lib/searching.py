"""Helpers for tests of the search: a small network, scores that need no data, and searches to be killed."""

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunus.errors import PrunusError
from prunus.graph import trace
from prunus.search import Evolution, Ranks, Space, journal, search
from prunus.selection import Budget

SETTINGS = {"weights": "0123abcd", "calibration": 500}


def chain():
    """Four free axes: 20, 30, 24 and 16."""
    layers = [nn.Linear(a, b) for a, b in pairwise([8, 20, 30, 24, 16, 5])]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


GRAPH = trace(chain(), torch.zeros(1, 8))
BEST = {"0": 0.9, "2": 0.35, "4": 0.8, "6": 0.5}  # share of each axis at which a network is best


def concave(widths):
    """A separable, concave score: minus the sum over axes of the squared distance from the best width."""
    sizes = {name: axis.size for name, axis in GRAPH.axes.items()}
    return -sum((widths[name] / sizes[name] - share) ** 2 for name, share in BEST.items())


class Images:
    """An evaluator: a network classifies an image correctly if its quality, plus noise, reaches its difficulty."""

    def __init__(self, images=3000, seed=0, luck=0.3):
        self.images, self.seed, self.luck = images, seed, luck
        self.levels = np.random.default_rng(seed).normal(size=images)
        self.asked = []

    def score(self, widths, images_from, images_to):
        self.asked.append((tuple(widths.items()), images_from, images_to))
        own = np.random.default_rng([self.seed, *widths.values()]).normal(size=self.images)
        right = 1 + concave(widths) + self.luck * own > self.levels
        return right[images_from:images_to]


class Noting(Images):
    """A score that logs every network before it is evaluated; after `most` of them it waits to be killed."""

    def __init__(self, log, pause_s=0.0, most=None):
        super().__init__(images=200)
        self.log, self.pause_s, self.left = Path(log), pause_s, most

    def score(self, widths, images_from, images_to):
        if images_from == 0:
            if self.left is not None:
                if not self.left:
                    time.sleep(600)
                    raise TimeoutError("nobody killed this search")
                self.left -= 1
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {sorted(widths.items())}\n")
        time.sleep(self.pause_s)
        return super().score(widths, images_from, images_to)


def small_search(folder, pause_s=0.0, workers=None, most=None):
    """A short search with everything in it, in a folder."""

    def measured(widths):  # about every second one holds by it
        assert workers is None or workers.leads
        return 13.0 * sum(widths.values())

    return search(
        Space(GRAPH, ratios=11),
        Budget(macs=0.4),
        Noting(Path(folder) / "log", pause_s, most),
        how=Evolution(generations=4, population=12, parents=4, mutants=5, crossovers=5),
        seed=3,
        seeds=[{"0": 20, "2": 7}],
        chunks=(50, 100),
        confirm=Images(300, seed=1),
        top=3,
        measured=measured,
        journal=Path(folder) / "journal.jsonl",
        settings=SETTINGS,
        workers=workers,
    )


def search_until_killed(folder, pause_s, torn_after=None, most=None):
    """In a process of its own. torn_after: kills itself in the middle of so many lines later. most: looks at so many
    networks, then waits to be killed."""
    if torn_after is not None:
        whole, count = os.fsync, iter(range(torn_after))

        def torn(handle):
            if next(count, None) is None:
                size = os.fstat(handle).st_size
                os.ftruncate(handle, size - 40)  # as if it had come no further
                os.kill(os.getpid(), signal.SIGKILL)
            whole(handle)

        journal.os.fsync = torn
    small_search(folder, pause_s, most=most)


def search_in_ranks(folder):
    """One of two processes, which end in the same result; each logs its own evaluations."""
    torch.distributed.init_process_group("gloo")
    workers = Ranks()
    own = Path(folder) / f"rank{workers.rank}"
    own.mkdir(parents=True)
    result = small_search(own, workers=workers)
    (own / "result.txt").write_text(repr(result.plain()))


def search_and_lose_one(folder):
    """One of two processes, the second of which dies during the search."""
    torch.distributed.init_process_group("gloo")
    workers = Ranks()
    if not workers.leads:
        whole, count = workers.map, iter(range(2))

        def mortal(work, tasks):
            if next(count, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(work, tasks)

        workers.map = mortal
    small_search(folder, workers=workers)


def search_and_fail(folder):
    """In one of two processes; writes down what comes of another's journal, and of an evaluator that fails in one."""
    torch.distributed.init_process_group("gloo")
    workers, own, told = Ranks(), Noting.score, []

    def score(self, *asked):
        if workers.rank:
            raise ZeroDivisionError("of process 1 alone")
        return own(self, *asked)

    for each in ("other", "new"):
        try:
            small_search(Path(folder) / each, workers=workers)
        except PrunusError as error:
            told.append(str(error))
            if workers.rank:
                told.append(f"from {error.__cause__.__cause__!r}")
        Noting.score = score
    (Path(folder) / f"told{workers.rank}").write_text("\n".join(told))
