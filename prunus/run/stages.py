"""The stages of a run, each from files to files.

    base      the weights to start from: trained here, fine-tuned, or as given    base.safetensors
    prune     the method's choice of what stays, and new weights if it trained    prune/
    shrink    the smaller model, proved equal to the masked one                   pruned/
    repair    its weights fitted again without labels, if that is better          repaired/
    recover   fine-tuning with the base as teacher; saved, loaded, compared       keep.json, model.safetensors
    evaluate  the test set, milliseconds and memory of the saved models

If the method chose single weights, shrink sets the others to zero and removes the units through which nothing passes
any more, recover keeps the zeros, and the masks are stored beside the model (masks.safetensors).

Choices are made on data.train and data.val; data.test evaluates base, pruned, repaired and recovered model, once each.
A run that repairs nothing has no stage repair.
"""

import copy
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus import charts, surgery
from prunus.export import store
from prunus.files import read_tensors, write_tensors
from prunus.graph import Graph, Keep, select_outputs
from prunus.inputs import call, move
from prunus.latency import milliseconds
from prunus.methods import Method, Options, Pruned
from prunus.recover import measure_pace, recover
from prunus.run import checks
from prunus.run.folder import RunFolder
from prunus.run.loading import BASE, check_same, check_same_masks, load_into
from prunus.run.plan import read_plan, write_plan
from prunus.run.records import check_record, hash_files
from prunus.run.repairing import repair_cut
from prunus.run.settings import READ_BY, Repair
from prunus.run.steps import Steps, split_epochs, within
from prunus.run.watching import WatchedSplit
from prunus.selection import CLOSED_FORMS, Budget, Metered, Sparsity, cost
from prunus.sparse import masks
from prunus.surgery import effective_tensors
from prunus.tasks import Task
from prunus.train import Recipe, checkpoint, fit, in_mode

METHOD_WEIGHTS, SHRUNK = "weights.safetensors", "pruned"
REPAIRED = "repaired"
METHOD_MASKS = "masks.safetensors"
RESULT = ["keep.json", "model.safetensors", "masks.safetensors"]  # the last for single weights alone
MB = 2**20  # bytes
ALWAYS = ("macs", "params", "memory_mb")  # costs that every run states; others where they are limited
COMPARED = 256  # examples on which outputs are compared


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The stages of a run. Each returns its record as plain JSON.

    Args:
        run: The run's folder.
        task: The task; stages work on copies of its model.
        budget: The limit.
        method: The method.
        config: The method's options.
        base_recipe: The recipe of the training before pruning.
        recovery_recipe: The recipe of the training after pruning.
        minutes: The time for that training, which then decides about its epochs; None: the recipe does.
        repairs: Whether and how the pruned model is repaired.
        must_repair: Whether a model that cannot be repaired is an error; otherwise it goes on as it was cut.
        steps: The number of steps in which the budget is reached.
    """

    run: RunFolder
    task: Task
    budget: Budget | Sparsity
    method: Method
    config: Options
    base_recipe: Recipe
    recovery_recipe: Recipe
    minutes: float | None = None
    repairs: Repair = "off"
    must_repair: bool = False
    steps: int = 1

    @property
    def stages(self) -> list[str]:
        """The names of the stages, in order."""
        return [name for name in READ_BY if name != "repair" or self.repairs != "off"]

    def base(self) -> dict[str, Any]:
        """Train or fine-tune the base, store its weights, and test them."""
        model = copy.deepcopy(self.task.model)
        history: list[dict[str, Any]] = []
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
        return {
            "history": history,
            "test": self.test(self.base_model()),
            "files": hash_files(self.run.path, [BASE]),
        }

    def prune(self) -> dict[str, Any]:
        """Let the method choose, and check that its choice meets the limit."""
        chosen = self.choose(self.base_model())
        measured: dict[str, Any] = {}
        if isinstance(self.budget, Sparsity):
            checks.check_sparsity(self.budget, chosen, self.method.name)
        else:
            checks.check_budget(self.graph, self.budget, chosen.keep, self.method.name)
        if isinstance(self.budget, Metered):
            measured = {"latency": checks.check_latency(self.budget, chosen.keep, self.method.name)}
            self.run.log("latency", **measured["latency"])
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

    def shrink(self) -> dict[str, Any]:
        """Remove units and weights, prove the result, and test it before any training."""
        record, model, graph = self.prune_record(), self.model_to_cut(), self.graph
        keep, left = record["keep"], None
        if self.is_sparse():
            masks.hold(model, graph, self.load_masks())
            masks.finalise(model)
            keep = {} if record["pattern"] else masks.dead(graph, self.load_masks())
            left = masks.sliced(graph, keep, self.load_masks())
        small = surgery.shrink(model, graph, keep, verify="off")
        proof = surgery.prove(model, graph, keep, small)
        self.run.write(lambda: store.save(self.run.path / SHRUNK, small, keep, graph, left))
        verified = {
            "max_abs_error": proof.max_abs_error,
            "tolerance": proof.tolerance,
            "dtype": str(proof.dtype).removeprefix("torch."),
            "modes": list(proof.modes),
            "calls": list(proof.calls),
        }
        if self.is_sparse():
            verified |= {
                "units_gone": count_removed(graph, keep),
                "change_by_units": self.output_difference(model, small),
            }
        return {"verified": verified, "test": self.test(small) | self.sparsity(small)}

    def repair(self) -> dict[str, Any]:
        """Fit the pruned model again to the answers of the model it was cut from; test it if it is better."""
        repaired, files = self.run.compute_once(self._repair), {}
        if repaired["kept"] == "repaired":
            repaired["test"] = self.test(store.load(self.run.path / REPAIRED, self.fresh_model()))
            files = hash_files(self.run.path, [f"{REPAIRED}/{name}" for name in RESULT])
        return {"repaired": repaired, "files": files}

    def _repair(self) -> dict[str, Any]:
        """Do what one process does of the stage repair."""
        cut = store.load(self.run.path / SHRUNK, self.fresh_model())
        task, keep = self.before_cut()
        assert self.repairs != "off"
        began_s = time.perf_counter()
        model, record = repair_cut(
            cut,
            task,
            keep,
            how=self.repairs,
            must=self.must_repair,
            seed=self.run.seed,
            progress=self.run.progress,
        )
        if record["kept"] == "repaired":
            store.save(self.run.path / REPAIRED, model, self.load_keep(), self.graph)
        self.run.log("repair", **record, seconds=time.perf_counter() - began_s)
        return record

    def recover(self) -> dict[str, Any]:
        """Fine-tune the pruned model, save it, and check that the saved model equals the trained one."""
        recipe = self.plan_recovery()
        recipe = recipe.adapt(epochs=split_epochs(recipe.epochs, self.steps)[-1])
        small, left = self.pruned_model()
        recovered = recover(
            small,
            self.task.on(small),
            recipe,
            teacher=self.base_model(),
            folder=self.run.folder("recover"),
            seed=self.run.seed,
            progress=self.run.progress,
            label=f"recovering for {recipe.epochs:.3g} epochs",
        )
        self.log_epochs("recover", recovered.history)
        kept = {"kept": recovered.kept, "on_val": recovered.on_val} if recovered.on_val else {}
        self.run.log("recovered", **kept)
        if self.is_sparse():
            masks.finalise(small)
        self.run.write(lambda: store.save(self.run.path, small, self.load_keep(), self.graph, left))
        check_same(small, store.load(self.run.path, self.fresh_model()))
        if left is not None:
            check_same_masks(left, store.load_masks(self.run.path))
        judged = {"recovered": kept} if kept else {}
        return {"history": recovered.history, **judged, "files": hash_files(self.run.path, RESULT)}

    def plan_recovery(self) -> Recipe:
        """Return the recipe of recovery, with as many epochs as fit into the minutes, if they decide.

        The number of epochs is stored before the training starts, so that a run that was killed goes on with the same.
        """
        recipe = self.recovery_recipe
        if self.minutes is None:
            return recipe
        planned = read_plan(self.run.path)
        if planned is None:
            small, _ = self.pruned_model()
            task, teacher, progress = self.task.on(small), self.base_model(), self.run.progress
            pace = measure_pace(small, task, recipe, teacher=teacher, seed=self.run.seed, progress=progress)
            seconds = 60 * self.minutes
            planned = self.run.compute_once(lambda: pace.epochs_within(seconds))
            write_plan(self.run, planned)
            self.run.log("planned", minutes=self.minutes, epochs=planned, **asdict(pace))
        return recipe.adapt(epochs=planned)

    def evaluate(self) -> dict[str, Any]:
        """Test the saved model, and measure the costs of base and saved model."""
        base, small = self.base_model(), store.load(self.run.path, self.fresh_model())
        graph, keep = self.graph, self.load_keep()
        record: dict[str, Any] = {
            "test": self.test(small),
            "before": self.measure_costs(base, graph, None, BASE) | self.sparsity(base),
            "after": self.measure_costs(small, graph, keep, "model.safetensors") | self.sparsity(small),
            "widths": {name: [kept, graph.axis(name).size] for name, kept in graph.widths(keep).items()},
        }
        record["examples"] = [charts.to_json(chart) for chart in self.task.examples(base, small)]
        if self.is_sparse():
            sizes = masks.sizes_mb(small, store.load_masks(self.run.path))
            record["after"] |= {f"{name}_mb": size for name, size in sizes.items()}
            record |= {
                "survivors": self.count_survivors(small),
                "left_dense": self.prune_record()["left_dense"],
            }
        return record

    def fresh_model(self) -> nn.Module:
        """Return a copy of the task's model, on the device that trains."""
        return copy.deepcopy(self.task.model).to(self.run.device)

    def base_model(self) -> nn.Module:
        """Return a fresh model with the stored base weights."""
        return load_into(self.fresh_model(), self.run.path / BASE)

    def model_to_cut(self) -> nn.Module:
        """Return the base, with the method's weights if it trained them."""
        model = self.base_model()
        if self.prune_record()["weights"]:
            load_into(model, self.run.path / "prune" / METHOD_WEIGHTS)
        return model

    def before_cut(self) -> tuple[Task, Keep]:
        """Return the task of the model in which the last cut was made, and the units of it that stayed."""
        keep = self.load_keep()
        if self.steps == 1:
            return self.task.with_weights_of(self.model_to_cut()), keep
        model, kept = self.in_steps(self.base_model()).before_last()
        task = self.task.on(model)
        return task, within(kept, keep, task.graph)

    def in_steps(self, base: nn.Module) -> Steps:
        """Return the pruning in steps, from a model with the weights of the base."""
        assert isinstance(self.budget, Budget)  # see settings.check_steps
        return Steps(
            run=self.run,
            task=self.task.with_weights_of(base),
            budget=self.budget,
            method=self.method,
            config=self.config,
            recipe=self.recovery_recipe,
            number=self.steps,
            repairs=self.repairs,
            must_repair=self.must_repair,
        )

    def pruned_model(self) -> tuple[nn.Module, dict[str, Tensor] | None]:
        """Return the model as cut or repaired, and the masks that it is held to, if single weights were chosen."""
        small, left = store.load(self.run.path / self.place_of_pruned(), self.fresh_model()), None
        if self.is_sparse():
            left = store.load_masks(self.run.path / SHRUNK)
            masks.hold(small, None, left)
        return small, left

    def place_of_pruned(self) -> str:
        """Return the folder of the pruned model: as it was cut, or repaired."""
        if self.repairs == "off":
            return SHRUNK
        record = check_record(self.run.path, "repair", self.run.stage("repair", self.repair))
        return REPAIRED if record["repaired"]["kept"] == "repaired" else SHRUNK

    @property
    def graph(self) -> Graph:
        """The axes of the task's model."""
        return self.task.graph

    def prune_record(self) -> dict[str, Any]:
        """Return the record of the stage prune."""
        return check_record(self.run.path, "prune", self.run.stage("prune", self.prune))

    def is_sparse(self) -> bool:
        """Return whether the method chose single weights."""
        return self.prune_record().get("masks", False)

    def load_masks(self) -> dict[str, Tensor]:
        """Return the method's masks for the whole model: by parameter, True stays."""
        return read_tensors(self.run.path / "prune" / METHOD_MASKS)

    def load_keep(self) -> dict[str, list[int]]:
        """Return the kept units of each axis."""
        return store.load_keep(self.run.path / SHRUNK)

    def count_survivors(self, model: nn.Module) -> dict[str, list[int]]:
        """Return by parameter how many weights of `model` are not zero, and how many the whole model has."""
        tensors = effective_tensors(model)
        return {n: [int(tensors[n].count_nonzero()), mask.numel()] for n, mask in self.load_masks().items()}

    def sparsity(self, model: nn.Module) -> dict[str, float]:
        """Return the share of zeros among the weights that could be pruned; removed weights count as zeros."""
        if not self.is_sparse():
            return {}
        left, there = map(sum, zip(*self.count_survivors(model).values(), strict=True))
        return {"sparsity": 1 - left / there}

    def test(self, model: nn.Module) -> dict[str, float]:
        """Return the metric and the loss on the test set, or on val if there is none."""
        split = self.task.data.judged
        with self.run.progress("testing", len(split)) as step:
            return self.task.evaluate(model, WatchedSplit(split, step))

    def output_difference(self, masked: nn.Module, small: nn.Module) -> float:
        """Return the largest difference of the two models' outputs on a batch of val, relative to the largest output.

        It is not zero, because a unit that nothing leads to still adds the constant of its bias. Outputs whose number
        depends on the data, such as boxes, are left out where it differs.
        """
        x, _ = next(iter(self.task.data.val.batches(COMPARED)))
        with torch.no_grad(), in_mode(masked, False), in_mode(small, False):
            inputs = move(x, self.run.device)
            outputs = (select_outputs(call(model, inputs), self.graph.chosen) for model in (masked, small))
            pairs = [
                (ours.double(), theirs.double())
                for ours, theirs in zip(*outputs, strict=True)
                if ours.shape == theirs.shape and ours.numel()
            ]
        largest = max((float((ours - theirs).abs().max()) for ours, theirs in pairs), default=0.0)
        return largest / max([1e-12, *(float(ours.abs().max()) for ours, _ in pairs)])

    def measure_costs(
        self, model: nn.Module, graph: Graph, keep: dict[str, list[int]] | None, file: str
    ) -> dict[str, float]:
        """Return the costs of one input, and the size of the file in MB."""
        latency = milliseconds.latency_ms(model, move(self.task.example, self.run.device))
        return {
            **{
                name: cost.of(graph, name, graph.widths(keep))
                for name in CLOSED_FORMS
                if name in ALWAYS or name in self.budget.limits
            },
            "latency_ms": latency.median_ms,
            "latency_spread_ms": latency.spread_ms,
            "file_mb": (self.run.path / file).stat().st_size / MB,
        }

    def choose(self, model: nn.Module) -> Pruned:
        """Return the method's choice for `model`."""
        if self.steps > 1:
            return self.in_steps(model).choose()
        return self.method.prune(self.task.with_weights_of(model), self.budget, self.config, self.run)

    def log_epochs(self, stage: str, history: list[dict[str, Any]]) -> None:
        """Append a line to the log for each epoch."""
        for row in history:
            self.run.log("epoch", stage=stage, **row)


def count_removed(graph: Graph, keep: dict[str, list[int]]) -> int:
    """Return how many units a keep removes."""
    return sum(graph.axis(name).size - len(indices) for name, indices in keep.items())
