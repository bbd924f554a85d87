"""The stages of a run, each from files to files.

    base      the weights to start from: trained here, fine-tuned, or as given    base.safetensors
    prune     the method chooses what stays, and may give weights for it          prune/
    shrink    the smaller module, proved equal to the masked one                  pruned/
    recover   it is trained on, taught by the base; saved, loaded, compared       keep.json, model.safetensors
    evaluate  test set, milliseconds and memory of what the files hold

Where the method chose single weights, shrink sets the others to zero and removes the units through which nothing
passes then, recover holds the zeros, and the masks lie beside the model (masks.safetensors).

Choices are made on data.train and data.val; data.test is met by base, pruned and recovered model, once each.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus import charts, surgery
from prunus.data import Split
from prunus.errors import PruningError
from prunus.export import store
from prunus.files import read_tensors, write_tensors
from prunus.graph import Graph
from prunus.latency import milliseconds
from prunus.methods import Method, Options, Pruned
from prunus.progress import Step
from prunus.recover import recover
from prunus.run import checks
from prunus.run.folder import Run
from prunus.selection import Budget, Metered, Sparsity, cost
from prunus.sparse import masks
from prunus.surgery import effective_tensors
from prunus.tasks import Task
from prunus.train import Recipe, checkpoint, fit, in_mode

BASE, METHOD_WEIGHTS, SHRUNK = "base.safetensors", "weights.safetensors", "pruned"
METHOD_MASKS = "masks.safetensors"
MB = 2**20  # bytes
COMPARED = 256  # examples on which answers are compared


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the stages work with. Each stage returns what it found as plain JSON."""

    run: Run
    task: Task  # its model as it was given; stages work on copies
    budget: Budget | Sparsity
    method: Method
    config: Options
    base_recipe: Recipe
    recovery_recipe: Recipe

    def base(self) -> dict:
        """Train or fine-tune, store the weights once, and test them."""
        model = copy.deepcopy(self.task.model)
        history = []
        if self.base_recipe.epochs:
            history = fit(
                model,
                self.task.with_weights_of(model),
                self.base_recipe,
                folder=self.run.folder("base"),
                seed=self.run.seed,
                progress=self.run.progress,
                label="training the base",
            )
        self.log_epochs("base", history)
        self.run.write(lambda: write_tensors(self.run.path / BASE, checkpoint.named_tensors(model)))
        return {"history": history, "test": self.tested(self.with_base())}

    def prune(self) -> dict:
        """Let the method choose; check that its choice keeps to what was asked."""
        chosen = self.choice(self.with_base())
        measured = {}
        if isinstance(self.budget, Sparsity):
            checks.check_sparsity(self.budget, chosen, self.method.name)
        elif isinstance(self.budget, Metered):
            measured = {"latency": checks.check_latency(self.budget, chosen.keep, self.method.name)}
            self.run.log("latency", **measured["latency"])
        else:
            checks.check_budget(self.graph(), self.budget, chosen.keep, self.method.name)
        for file, tensors in ((METHOD_WEIGHTS, chosen.weights), (METHOD_MASKS, chosen.masks)):
            if tensors is not None:
                path = self.run.folder("prune") / file
                self.run.write(lambda path=path, tensors=tensors: write_tensors(path, dict(tensors)))
        return {
            "keep": chosen.keep,
            "weights": chosen.weights is not None,
            "masks": chosen.masks is not None,
            "pattern": chosen.pattern,
            "left_dense": dict(chosen.left_dense),
            "charts": [charts.to_json(chart) for chart in chosen.charts],
            **measured,
        }

    def shrink(self) -> dict:
        """Remove for real, prove it, and test the result before anything is trained."""
        found, model, graph = self.found(), self.with_base(), self.graph()
        if found["weights"]:
            fill(model, self.run.path / "prune" / METHOD_WEIGHTS)
        keep, left = found["keep"], None
        if self.sparse():
            masks.hold(model, graph, self.chosen())
            masks.finalise(model)
            keep = {} if found["pattern"] else masks.dead(graph, self.chosen())
            left = masks.sliced(graph, keep, self.chosen())
        small = surgery.shrink(model, graph, keep, verify="off")
        proof = surgery.prove(model, graph, keep, small)
        self.run.write(lambda: store.save(self.run.path / SHRUNK, small, keep, graph, left))
        verified = {"max_abs_error": proof.max_abs_error, "tolerance": proof.tolerance}
        if self.sparse():
            verified |= {"units_gone": gone(graph, keep), "change_by_units": self.apart(model, small)}
        return {"verified": verified, "test": self.tested(small) | self.zeros(small)}

    def recover(self) -> dict:
        """Train the pruned model on, save it, and see that what was saved is what was trained."""
        small, left = store.load(self.run.path / SHRUNK, self.fresh()), None
        if self.sparse():
            left = store.load_masks(self.run.path / SHRUNK)
            masks.hold(small, None, left)
        history = recover(
            small,
            self.task.on(small),
            self.recovery_recipe,
            teacher=self.with_base(),
            folder=self.run.folder("recover"),
            seed=self.run.seed,
            progress=self.run.progress,
        )
        self.log_epochs("recover", history)
        if self.sparse():
            masks.finalise(small)
        self.run.write(lambda: store.save(self.run.path, small, self.keep(), self.graph(), left))
        check_same(small, store.load(self.run.path, self.fresh()))
        return {"history": history}

    def evaluate(self) -> dict:
        """Test the model that was saved; time both models side by side."""
        base, small = self.with_base(), store.load(self.run.path, self.fresh())
        graph, keep = self.graph(), self.keep()
        record = {
            "test": self.tested(small),
            "before": self.costs(base, graph, None, BASE) | self.zeros(base),
            "after": self.costs(small, graph, keep, "model.safetensors") | self.zeros(small),
            "widths": {name: [kept, graph.axes[name].size] for name, kept in graph.widths(keep).items()},
        }
        if self.sparse():
            sizes = masks.sizes_mb(small, store.load_masks(self.run.path))
            record["after"] |= {f"{name}_mb": size for name, size in sizes.items()}
            record |= {"survivors": self.survivors(small), "left_dense": self.found()["left_dense"]}
        return record

    def fresh(self) -> nn.Module:
        """A copy of the model as it was given, on the device that trains."""
        return copy.deepcopy(self.task.model).to(self.run.processes.device)

    def with_base(self) -> nn.Module:
        """A fresh model with the stored base weights."""
        return fill(self.fresh(), self.run.path / BASE)

    def graph(self) -> Graph:
        """The axes of the model as it was given."""
        return self.task.graph

    def found(self) -> dict:
        """What the stage prune left behind."""
        return self.run.stage("prune", self.prune)

    def sparse(self) -> bool:
        """Whether the method chose single weights."""
        return self.found().get("masks", False)

    def chosen(self) -> dict[str, Tensor]:
        """What the method chose, for the whole model: by parameter, True stays."""
        return read_tensors(self.run.path / "prune" / METHOD_MASKS)

    def keep(self) -> dict[str, list[int]]:
        """The units that stayed."""
        return store.load_keep(self.run.path / SHRUNK)

    def survivors(self, model: nn.Module) -> dict[str, list[int]]:
        """How many weights of `model`, this one or a smaller one, are not zero, and how many there were at first."""
        tensors = effective_tensors(model)
        return {n: [int(tensors[n].count_nonzero()), mask.numel()] for n, mask in self.chosen().items()}

    def zeros(self, model: nn.Module) -> dict[str, float]:
        """The share of zeros among the weights that were up for pruning; removed ones are zeros, too."""
        if not self.sparse():
            return {}
        left, there = map(sum, zip(*self.survivors(model).values(), strict=True))
        return {"sparsity": 1 - left / there}

    def tested(self, model: nn.Module) -> dict[str, float]:
        """The metric and the loss on the test set."""
        with self.run.progress("testing", len(self.task.data.test)) as step:
            return self.task.evaluate(model, Watched(self.task.data.test, step))

    def apart(self, masked: nn.Module, small: nn.Module) -> float:
        """How far the answers to some of val are apart, relative to the largest: units that nothing leads to take
        with them the constant that their biases gave."""
        x, _ = next(iter(self.task.data.val.batches(COMPARED)))
        with torch.no_grad(), in_mode(masked, False), in_mode(small, False):
            answers = (tree_leaves(model(x.to(self.run.processes.device))) for model in (masked, small))
            pairs = [pair for pair in zip(*answers, strict=True) if isinstance(pair[0], Tensor)]
        apart = max(float((ours.double() - theirs.double()).abs().max()) for ours, theirs in pairs)
        return apart / max(1e-12, *(float(ours.double().abs().max()) for ours, _ in pairs))

    def costs(self, model: nn.Module, graph: Graph, keep: dict | None, file: str) -> dict[str, float]:
        """What one input costs, and how large the file is."""
        latency = milliseconds.latency_ms(model, self.task.example.to(self.run.processes.device))
        return {
            "macs": cost.macs(graph, keep),
            "params": cost.params(graph, keep),
            "memory_mb": cost.memory_mb(graph, keep),
            "latency_ms": latency.median_ms,
            "latency_spread_ms": latency.spread_ms,
            "file_mb": (self.run.path / file).stat().st_size / MB,
        }

    def choice(self, model: nn.Module) -> Pruned:
        """What the method makes of `model`."""
        return self.method.prune(self.task.with_weights_of(model), self.budget, self.config, self.run)

    def log_epochs(self, stage: str, history: list[dict]) -> None:
        """A line in the log for each epoch."""
        for row in history:
            self.run.log("epoch", stage=stage, **row)


@dataclass(frozen=True)
class Watched:
    """A split that reports how much of it has been read."""

    split: Split
    step: Step

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The split's batches, in order."""
        for x, y in self.split.batches(batch_size):
            yield x, y
            self.step(len(y))


def gone(graph: Graph, keep: dict[str, list[int]]) -> int:
    """How many units a keep removes."""
    return sum(graph.axes[name].size - len(indices) for name, indices in keep.items())


def fill(model: nn.Module, file: Path) -> nn.Module:
    """`model` with the weights and buffers in `file`; FileError or UserError if they do not fit."""
    saved = {f"model.{name}": tensor for name, tensor in read_tensors(file).items()}
    checkpoint.restore(file, "model", saved, checkpoint.named_tensors(model))
    return model


def check_same(model: nn.Module, loaded: nn.Module) -> None:
    """Raise PruningError unless the model that was saved and loaded holds the bits of the one in memory."""
    ours, theirs = checkpoint.named_tensors(model), checkpoint.named_tensors(loaded)
    same = ours.keys() & theirs.keys()
    differing = [name for name in same if not torch.equal(ours[name].cpu(), theirs[name].cpu())]
    differing += sorted(ours.keys() ^ theirs.keys())
    if differing:
        raise PruningError(f"the saved model differs from the one in memory in {', '.join(differing[:3])}.")
