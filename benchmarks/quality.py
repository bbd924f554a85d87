r"""Quality at a budget: Prunus and torch-pruning 1.6.1 from one base, as cut, repaired, and after training.

    pip install --no-deps --target PEER torch-pruning==1.6.1
    PYTHONPATH=PEER python benchmarks/quality.py --data parquet:../shared/data/cifar10 \
        --weights ../shared/weights/cifar10_resnet20.safetensors --arms taylor tp-taylor --seeds 0 1 2

The base is the network with the weights given, tuned to the data. Every arm cuts the same base to the same share of its
multiply-adds, which Prunus counts, and is tested as it is, with its norms renewed, repaired if its arm is, and after
trainings of the lengths asked. Each training begins at the same start with a cosine of its own; all have the same
recipe, the same teacher (the base) and the same number of steps, but for the arms named after another recipe. The seed
decides the images for scores and repair, the order and the augmentation. Accuracy in % on the test set, after the last
step; no choice was made on that set.

Rows that are there with the same setup are not run again, and a training that was killed goes on, so a board can grow
over many sittings, and in several processes with different arms at once.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import mean, stdev

import torch
from board import Board, arguments, tuned
from torch import nn
from torch.nn import functional as F

import prunus
from prunus import scores
from prunus.data import Data, load_data, reseed
from prunus.export import load_keep
from prunus.graph import Graph, Keep
from prunus.recover import renew_norms
from prunus.refit import fit_in_order
from prunus.run import Settings
from prunus.tasks import Classification
from prunus.train import fit, in_mode

IMAGES, BATCH = 1024, 128  # for repair and for norms
SCORED, SCORE_BATCH = 32, 64  # batches for Taylor scores
PEER_STEPS, PEER_BATCHES = (
    100,
    5,
)  # torch-pruning's iterations on the way to no channels; its benchmark takes 400, 20
SPARSE_LR = 0.01  # of torch-pruning's sparse learning, as in its own benchmark


@dataclass(frozen=True)
class Setting:
    """What an arm cuts: the base, and the share of its multiply-adds that may stay, with widths that are multiples."""

    base: nn.Module
    graph: Graph
    share: float
    data: Data
    seed: int
    round_to: int

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, target)

    def scored(self) -> list:
        """The labelled batches on which scores are computed."""
        return list(islice(self.data.train.batches(SCORE_BATCH, seed=self.seed), SCORED))

    def images(self) -> list[torch.Tensor]:
        """The unlabelled images for repair and for norms."""
        batches = self.data.train.batches(BATCH, seed=self.seed, augment=True)
        return [x for x, _ in islice(batches, IMAGES // BATCH)]


Cut = Callable[
    [Setting], tuple[nn.Module, Keep | None]
]  # the small network, and what stays, where it is known


def ours(score: str, how: str, fast: bool = False) -> Cut:
    """Make the function that cuts by a score and a way of ranking.

    fast: Whether widths are the multiples that `select` takes by itself.
    """

    def cut(of: Setting) -> tuple[nn.Module, Keep | None]:
        if score == "taylor":
            found = scores.taylor(of.base, of.graph, of.loss, of.scored())
        elif score == "random":
            found = scores.random(of.graph, of.seed)
        else:
            found = scores.magnitude(of.base, of.graph)
        round_to = None if fast else of.round_to
        keep = prunus.select(of.graph, found, prunus.Budget(macs=of.share), how=how, round_to=round_to)
        return prunus.shrink(of.base, of.graph, keep), keep

    return cut


def by_run(method: str, *options: str) -> Cut:
    """Make the function that runs a method of Prunus on the base: its search, with the recipe of these boards."""

    def cut(of: Setting) -> tuple[nn.Module, Keep | None]:
        settings = Settings(
            method=method,
            options=(*options, f"round_to={of.round_to}"),
            seed=of.seed,
            base_epochs=0.0,
            epochs=0.0,
            repair="off",
            recipe=("search.lr=0.05", "search.distill_weight=0.7") if method == "dhp" else (),
            threads=torch.get_num_threads(),
            workers=0,
        )
        with tempfile.TemporaryDirectory() as folder:
            budget = prunus.Budget(macs=of.share)
            result = prunus.prune(
                of.base, data=of.data, budget=budget, out=f"{folder}/run", settings=settings
            )
            return result.model, load_keep(f"{folder}/run", of.graph)

    return cut


def from_scratch(of: Setting) -> tuple[nn.Module, Keep | None]:
    """The network that taylor leaves, with new weights."""
    small, keep = ours("taylor", "per_cost")(of)
    reseed(of.seed)
    for module in small.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return small, keep


def theirs(kind: str, sparse: bool = False) -> Cut:
    """Make the function that cuts with torch-pruning, a little at a time until the share is reached, as it advises."""

    def cut(of: Setting) -> tuple[nn.Module, Keep | None]:
        import torch_pruning

        model = copy.deepcopy(of.base)
        importance = {
            "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
            "taylor": lambda: torch_pruning.importance.GroupTaylorImportance(),
        }[kind]()
        makes = torch_pruning.pruner.GroupNormPruner if sparse else torch_pruning.pruner.BasePruner
        pruner = makes(
            model,
            of.data.example,
            importance=importance,
            global_pruning=True,
            pruning_ratio=1.0,
            max_pruning_ratio=1.0,
            iterative_steps=PEER_STEPS,
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)],
        )
        if sparse:
            learn_sparsely(model, pruner, of)
        batches = of.scored()[:PEER_BATCHES]
        for _ in range(PEER_STEPS):
            if kind == "taylor":
                model.zero_grad()
                with in_mode(model, False):
                    for x, y in batches:
                        of.loss(model(x), y).backward()
            pruner.step()
            if multiply_adds(model, of) <= of.share:
                break
        model.zero_grad()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model, None

    return cut


def learn_sparsely(model: nn.Module, pruner: object, of: Setting) -> None:
    """Train an epoch with torch-pruning's group sparsity, as its benchmark does before it cuts."""
    optimizer = torch.optim.SGD(model.parameters(), SPARSE_LR, 0.9, weight_decay=5e-4)
    with in_mode(model, True):
        for x, y in of.data.train.batches(BATCH, seed=of.seed, epoch=0, augment=True):
            optimizer.zero_grad()
            of.loss(model(x), y).backward()
            pruner.regularize(model)
            optimizer.step()


def multiply_adds(model: nn.Module, of: Setting) -> float:
    """The share of the base's multiply-adds that a network needs."""
    return prunus.macs(prunus.trace(model, of.data.example)) / prunus.macs(of.graph)


@dataclass(frozen=True)
class Arm:
    """A way to a small network.

    Args:
        cut: Makes the small network.
        repaired: Whether it is repaired by least squares, without labels, before it is trained.
        spent: The epochs of training that `cut` has used, which are taken off the training after it.
        recipe: Fields of the recipe that are this arm's own.
    """

    cut: Cut
    repaired: bool = False
    spent: float = 0.0
    recipe: tuple[tuple[str, float], ...] = ()


# 50 networks on 1,000 images with weights in closed form: about half an epoch's forward and backward passes
SEARCH = (
    "weights=closed_form",
    "generations=5",
    "population=10",
    "parents=4",
    "images=1000",
    "calibration=512",
)
DOCUMENTED = (("lr", 0.01), ("distill_weight", 0.0))  # torch-pruning's benchmark; its steps are a cosine here
ARMS = {
    "taylor": Arm(ours("taylor", "per_cost"), repaired=True),
    "taylor, not repaired": Arm(ours("taylor", "per_cost")),
    "taylor, rounded": Arm(ours("taylor", "per_cost", fast=True), repaired=True),
    "taylor, uniform": Arm(ours("taylor", "uniform"), repaired=True),
    "l2": Arm(ours("l2", "global"), repaired=True),
    "submodular": Arm(by_run("submodular", "worth=loss"), repaired=True),
    "dhp": Arm(by_run("dhp", "epochs=1"), spent=1.0),
    "pass": Arm(by_run("pass", "steps=176"), repaired=True, spent=0.5),
    "metapruning": Arm(by_run("metapruning", *SEARCH), repaired=True, spent=0.5),
    "random": Arm(ours("random", "uniform"), repaired=True),
    "scratch": Arm(from_scratch),
    "tp-l2": Arm(theirs("l2")),
    "tp-taylor": Arm(theirs("taylor")),
    "tp-group-norm": Arm(theirs("l2", sparse=True), spent=1.0),
    "tp-taylor, its recipe": Arm(theirs("taylor"), recipe=DOCUMENTED),
    "taylor, its recipe": Arm(ours("taylor", "per_cost"), recipe=DOCUMENTED),
}


def run(board: Board, arm: str, of: Setting, asked: argparse.Namespace) -> None:
    """Make the rows of an arm that are not there yet."""
    apart = {"arm": arm, "share": of.share, "seed": of.seed}
    lengths = [0.0, *(each for each in asked.epochs if each > ARMS[arm].spent)]
    wanted = [each for each in lengths if not board.has(**apart, epochs=each)]
    if not wanted:
        return
    task = Classification(of.base, of.data)

    def tested(model: nn.Module) -> float:
        return round(100 * task.evaluate(model, of.data.test)["accuracy"], 2)

    how, images = ARMS[arm], of.images()
    small, keep = how.cut(of)
    row = {"macs": multiply_adds(small, of), "cut": tested(small)}
    renewed = copy.deepcopy(small)
    renew_norms(renewed, [(x, None) for x in images])
    row["renewed"] = tested(renewed)
    if how.repaired:
        assert keep is not None
        fit_in_order(of.base, small, of.graph, keep, images)
        renew_norms(small, [(x, None) for x in images])
        row["repaired"] = tested(small)
    else:
        small = renewed
    if 0.0 in wanted:
        board.add(apart | {"epochs": 0.0} | row)
    for epochs in wanted:
        if epochs:
            model = copy.deepcopy(small)
            fields = {"lr": asked.lr, "distill_weight": asked.distill_weight} | dict(how.recipe)
            recipe = replace(task.recipe("recover"), epochs=epochs - how.spent, **fields)
            name = "_".join(map(str, (arm.replace(" ", "").replace(",", "-"), of.share, of.seed, epochs)))
            fit(
                model,
                task.on(model),
                recipe,
                teacher=of.base,
                seed=of.seed,
                folder=asked.folder / name,
            )
            board.add(apart | {"epochs": epochs, "accuracy": tested(model)})


def table(rows: list[dict], share: float, lengths: list[float]) -> str:
    """Make a table in Markdown: mean, and standard deviation over the seeds."""

    def cell(arm: str, epochs: float, name: str) -> str:
        found = [
            row[name]
            for row in rows
            if (row.get("arm"), row.get("share"), row.get("epochs")) == (arm, share, epochs) and name in row
        ]
        if not found:
            return ""
        spread = f" ± {stdev(found):.1f}" if len(found) > 1 else ""
        return f"{mean(found):.1f}{spread}"

    head = ["arm", "seeds", "as cut", "norms renewed", "repaired"]
    head += [f"after {epochs:g} epoch{'s' * (epochs != 1)}" for epochs in lengths]
    lines = [head, ["---"] * len(head)]
    for arm in ARMS:
        seeds = {row["seed"] for row in rows if row.get("arm") == arm and row.get("share") == share}
        if seeds:
            cells = [cell(arm, 0.0, name) for name in ("cut", "renewed", "repaired")]
            lines.append(
                [arm, str(len(seeds)), *cells, *(cell(arm, epochs, "accuracy") for epochs in lengths)]
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "runs/quality")
    parser.set_defaults(round_to=1)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--epochs", type=float, nargs="*", default=[3.0], help="of the trainings")
    parser.add_argument("--lr", type=float, default=0.05, help="of every arm without a recipe of its own")
    parser.add_argument("--distill-weight", type=float, default=0.7)
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and stop")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out or Path(__file__).parent / "results" / f"quality_{asked.network}.json"
    fixed = ("network", "base_epochs", "round_to", "lr", "distill_weight")
    board = Board(out, {name: getattr(asked, name) for name in fixed})
    if not asked.table:
        data = load_data(asked.data)
        base = tuned(asked, data)
        if not board.has(arm="base"):
            accuracy = Classification(base, data).evaluate(base, data.test)["accuracy"]
            board.add({"arm": "base", "accuracy": 100 * accuracy})
        graph = prunus.trace(base, data.example)
        for seed in asked.seeds:
            for share in asked.shares:
                for arm in asked.arms:
                    run(board, arm, Setting(base, graph, share, data, seed, asked.round_to), asked)
    for share in sorted({row["share"] for row in board.rows if "share" in row}, reverse=True):
        print(f"\n{share:g} of the multiply-adds\n\n{table(board.rows, share, asked.epochs)}")


if __name__ == "__main__":
    main()
