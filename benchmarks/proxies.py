r"""What ranks good networks before they are trained: proxies of a search for widths against a short training.

    python benchmarks/proxies.py                                      # scikit-learn's digits, minutes
    python benchmarks/proxies.py --data parquet:../shared/data/cifar10 --network resnet20 --seeds 0 \
        --weights ../shared/weights/cifar10_resnet20.safetensors --candidates 8 --images 512 --train 4000

A search starts from the widths that Taylor scores per cost choose, so its candidates are these and mutants of them; the
order of units is Taylor's in all. Each candidate is made in three ways: with norms renewed, fitted in one pass, fitted
in order, on the same images; its proxies are computed on training images held out of all else: accuracy, the loss on
labels, the distance to the base's answers (KL). `taught` are the same after a few steps of distillation from the
network fitted in one pass; `taylor` is minus the Taylor scores of the units that are gone. The truth is the accuracy on
test after an epoch on a part of the training images, taught by the base, from the weights fitted in one pass; the mean
over seeds. Printed: Kendall's tau of each proxy with the truth, the truth of the candidate that the proxy would choose,
and the agreement of the seeds with each other, above which no proxy can be expected. Rows that are there with the same
setup are not run again.
"""

import copy
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from board import Board, arguments, tuned
from torch import Tensor, nn

import prunus
from prunus import scores
from prunus.data import Data, Examples, load_data
from prunus.recover import renew_norms
from prunus.refit import Moments, fit_in_order
from prunus.search import Feasible, Space, best_first, split_training
from prunus.search.proposals import mutate, nearest
from prunus.surgery import clone
from prunus.tasks import Classification
from prunus.train import fit

CHANCE = 0.15  # of a gene to change in a mutant, half of the mutants in small steps
FITS = ("renewed", "once", "order", "taught")
MEASURES = ("accuracy", "loss", "kl")


class Candidates:
    """The networks, and what is measured of them.

    Args:
        base: The trained network.
        data: The data.
        asked: The options of the command line.
    """

    def __init__(self, base: nn.Module, data: Data, asked):
        self.base, self.asked = base.eval(), asked
        self.graph = graph = prunus.trace(base, data.example)
        parts = split_training(data.train, asked.held_out, 0)
        few = {
            "val": data.val.take(first(data.val, 500)),
            "test": data.test.take(first(data.test, asked.tested)),
        }
        self.task = Classification(
            base, replace(data, train=parts.train.take(first(parts.train, asked.train)), **few)
        )
        batches = islice(parts.train.batches(64, seed=0), 16)
        self.taylor = scores.taylor(base, graph, self.task.loss, batches)
        self.space = Space(graph)
        self.order = best_first(graph, self.taylor)
        shown = parts.train.batches(128, seed=0, augment=True)
        self.images = [x for x, _ in islice(shown, max(1, asked.images // 128))]
        self.moments = Moments(base, graph, self.images)
        self.held = list(parts.search.batches(256))
        with torch.no_grad():
            self.answers = [base(x) for x, _ in self.held]

    def widths(self) -> list[dict[str, int]]:
        """Return those of Taylor per cost, then of mutants of them, all at the budget."""
        budget, rng = prunus.Budget(macs=self.asked.share), np.random.default_rng(0)
        room = Feasible(self.space, budget)
        keep = prunus.select(self.graph, self.taylor, budget, how="per_cost", round_to=1)
        first = nearest(room, self.graph.widths(keep), rng)
        room.claim(first)

        def mutants(count: int, rng: np.random.Generator) -> np.ndarray:
            return mutate(first[None], self.space.counts, CHANCE, 0.5, count, rng)

        genes = [first, *room.sample_new(mutants, self.asked.candidates - 1, rng)]
        return list(map(self.space.widths, genes))

    def row(self, widths: dict[str, int]) -> dict:
        """Make the row of a candidate: its proxies and its truths."""
        graph, keep, row = self.graph, self.space.keep(widths, self.order), {"widths": widths}
        gone = [self.taylor[name].sum() - self.taylor[name][units].sum() for name, units in keep.items()]
        row["taylor"] = -sum(gone).item()
        cut = partial(prunus.shrink, graph=graph, keep=keep, verify="off")
        once = cut(clone(self.base, self.moments.weights(keep)))
        taught = copy.deepcopy(once)
        networks = {"renewed": cut(self.base), "once": once, "order": cut(self.base), "taught": taught}
        for name, network in networks.items():
            began = time.process_time()
            if name == "order":
                fit_in_order(self.base, network, graph, keep, self.images)
            if name == "taught":
                self.train(network, self.asked.steps * self.task.recipe("recover").batch_size, 0)
            renew_norms(network, [(x, None) for x in self.images])
            row |= {f"{name} {measure}": value for measure, value in self.measured(network).items()}
            row[f"{name} seconds"] = time.process_time() - began
        row["truths"] = []
        for seed in self.asked.seeds:
            network = copy.deepcopy(once)
            self.train(network, self.asked.train, seed)
            row["truths"].append(100 * self.task.evaluate(network, self.task.data.test)["accuracy"])
        return row

    def train(self, network: nn.Module, images: int, seed: int) -> None:
        """Train on so many images, taught by the base, with a whole cycle of the learning rate."""
        recipe = replace(self.task.recipe("recover"), epochs=1.0, lr=self.asked.lr)
        some = self.task.data.train.take(first(self.task.data.train, images))
        fit(
            network,
            self.task.with_data(replace(self.task.data, train=some)),
            recipe,
            seed=seed,
            teacher=self.base,
        )

    @torch.no_grad()
    def measured(self, network: nn.Module) -> dict[str, float]:
        """Return accuracy, minus the loss and minus the distance to the base on the images held out."""
        network.eval()
        sums, count = torch.zeros(3), 0
        for (x, y), wanted in zip(self.held, self.answers, strict=True):
            output = network(x)
            loss, kl = F.cross_entropy(output, y, reduction="sum"), distance(output, wanted)
            sums += torch.stack([(output.argmax(1) == y).float().sum(), -loss, -kl])
            count += len(y)
        return dict(zip(MEASURES, (sums / count).tolist(), strict=True))


def first(split: Examples, count: int) -> np.ndarray:
    """The numbers of the first examples of a split, at most `count`."""
    return np.arange(min(count, len(split)))


def distance(output: Tensor, wanted: Tensor) -> Tensor:
    """The KL divergence of answers from the wanted ones, summed over examples."""
    return F.kl_div(output.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="sum")


def kendall(a: list[float], b: list[float]) -> float:
    """Kendall's tau of two rankings: the share of pairs in the same order, less that of pairs in the other."""
    first, second = (torch.tensor(each, dtype=torch.float64) for each in (a, b))
    signs = [torch.sign(each[:, None] - each).triu(1) for each in (first, second)]
    return (signs[0] * signs[1]).sum().item() / (len(a) * (len(a) - 1) / 2)


def table(rows: list[dict]) -> str:
    """Make a table in Markdown."""
    truths = [sum(row["truths"]) / len(row["truths"]) for row in rows]
    lines = [["proxy", "Kendall", "its choice, trained", "s of processor a network"], ["---"] * 4]
    for proxy in ["taylor", *(f"{made} {measure}" for made in FITS for measure in MEASURES)]:
        values = [row[proxy] for row in rows]
        chosen, seconds = truths[int(np.argmax(values))], rows[0].get(f"{proxy.partition(' ')[0]} seconds")
        spent = "0" if seconds is None else f"{seconds:.1f}"
        lines.append([proxy, f"{kendall(values, truths):.2f}", f"{chosen:.1f}", spent])
    seeds = list(zip(*(row["truths"] for row in rows), strict=True))
    if len(seeds) > 1:
        lines.append(["another seed", f"{kendall(*seeds[:2]):.2f}", "", ""])
    found = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{found}\n\n{len(rows)} networks, trained {min(truths):.1f} to {max(truths):.1f} %, mean "
        f"{sum(truths) / len(truths):.1f}; Taylor's own widths {truths[0]:.1f}."
    )


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/proxies", digits=True)
    parser.set_defaults(seeds=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.125, help="of the multiply-adds")
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--images", type=int, default=1024, help="for norms and fitting")
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--train", type=int, default=10000, help="images of the short training")
    parser.add_argument(
        "--lr", type=float, default=0.02, help="of the short training; 0.05 destroys repaired weights"
    )
    parser.add_argument("--tested", type=int, default=10000, help="images of test")
    parser.add_argument("--steps", type=int, default=8, help="of `taught`")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"proxies_{asked.network}.json"
    apart = ("data", "weights", "candidates", "folder", "base", "out")
    board = Board(out, {name: value for name, value in vars(asked).items() if name not in apart})
    data = load_data(asked.data)
    candidates = Candidates(tuned(asked, data), data, asked)
    for number, widths in enumerate(candidates.widths()):
        if not board.has(number=number):
            board.add({"number": number} | candidates.row(widths))
    print(table(board.rows))


if __name__ == "__main__":
    main()
