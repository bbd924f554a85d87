"""Pruning in steps: a little is cut, repaired and trained, again and again, before the last cut is made.

    prune/N/step.json          what step N did; written last, so it marks a finished step
    prune/N/keep.json, ...     the small model of its end
    prune/N/recover/           the checkpoint of its training

Between 1 and the share that the budget leaves, the limits of the steps fall by the same factor. The method chooses in
the small model of the step before. The epochs of recovery are split evenly, and the last part is that of the stage
recover.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

import msgspec
from accelerate.utils import set_seed
from torch import nn

from prunus import charts, surgery
from prunus.errors import PruningError, UserError
from prunus.export import store
from prunus.files import Record, read_json, write_json
from prunus.graph import Graph, Keep, Places
from prunus.methods import Method, Options, Pruned
from prunus.recover import recover
from prunus.report import Recovered, Repaired, Row
from prunus.run.folder import RunFolder
from prunus.run.repairing import repair_cut
from prunus.run.settings import Repair
from prunus.selection import Bounds, Budget, cost, min_units
from prunus.tasks import Task
from prunus.train import Recipe, checkpoint

DONE, TRAINING = "step.json", "recover"


class StepRecord(Record, frozen=True, kw_only=True):
    """The file step.json: the fields of the records of the stages repair and recover, of one step."""

    share: float
    history: list[Row]
    repaired: Repaired | None = None
    recovered: Recovered | None = None


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The pruning of a run in steps.

    Args:
        run: The run's folder.
        task: The task of the base.
        budget: The limit of the last step.
        method: The method.
        config: Its options.
        recipe: The recipe of recovery, whose epochs are those of all steps together.
        number: The number of steps.
        repairs: Whether and how the models are repaired.
        must_repair: Whether a model that cannot be repaired is an error.
    """

    run: RunFolder
    task: Task
    budget: Budget
    method: Method
    config: Options
    recipe: Recipe
    number: int
    repairs: Repair
    must_repair: bool

    def choose(self) -> Pruned:
        """Take all steps but the last, and choose in the model of their end.

        Returns:
            The choice in terms of the original, with the weights of that model where it has some.

        Raises:
            UserError: The method brings weights of its own.
            PruningError: The axes of a small model are not those of the original.
        """
        for step in range(1, self.number):
            if not (self._folder(step) / DONE).exists():
                self._take(step)
        small, kept = self.before_last()
        keep, found, _ = self._choose(self.task.on(small), kept, self.number)
        whole, graph, places = checkpoint.named_tensors(self.task.model), self.task.graph, Places(kept)
        weights = {
            name: places.put(tensor.detach(), graph.layouts[name], whole[name].detach().to(tensor.device))
            for name, tensor in checkpoint.named_tensors(small).items()
        }
        return replace(found, keep=keep, weights=weights, charts=[self._chart(), *found.charts])

    def before_last(self) -> tuple[nn.Module, dict[str, list[int]]]:
        """Return the model in which the last step chooses, and the units of the original that it has."""
        return self._end_of(self.number - 1)

    def _end_of(self, step: int) -> tuple[nn.Module, dict[str, list[int]]]:
        """Return the model of the end of a step, and the units that it has; of step 0 the original."""
        model = copy.deepcopy(self.task.model).to(self.run.device)
        if not step:
            return model, {name: list(range(axis.size)) for name, axis in self.task.graph.axes.items()}
        return store.load(self._folder(step), model), store.load_keep(self._folder(step))

    def _folder(self, step: int) -> Path:
        return self.run.folder(f"prune/{step}")

    def _take(self, step: int) -> None:
        """Cut, repair and train in one step, and store the model and what was done."""
        set_seed(self.run.seed)  # as if the run had been resumed here
        model, kept = self._end_of(step - 1)
        task = self.task.on(model)
        keep, chosen, share = self._choose(task, kept, step)
        small = surgery.shrink(model, task.graph, chosen.keep, verify="off")
        record: dict[str, Any] = {"share": share}
        if self.repairs != "off":
            record["repaired"] = self.run.compute_once(
                lambda: self._repair(step, small, task, chosen.keep, keep)
            )
            small = store.load(self._folder(step), copy.deepcopy(self.task.model).to(self.run.device))
        recipe = self.recipe.adapt(epochs=split_epochs(self.recipe.epochs, self.number)[step - 1])
        found = recover(
            small,
            self.task.on(small),
            recipe,
            teacher=self.task.model.to(self.run.device),
            folder=self._folder(step) / TRAINING,
            seed=(self.run.seed + step) % 2**32,  # other orders and augmentations than in other steps
            progress=self.run.progress,
        )
        for row in found.history:
            self.run.log("epoch", stage="prune", step=step, **row)
        record |= {"history": found.history}
        record |= {"recovered": {"kept": found.kept, "on_val": found.on_val}} if found.on_val else {}
        self.run.write(lambda: store.save(self._folder(step), small, keep, self.task.graph))
        self.run.write(lambda: write_json(self._folder(step) / DONE, record))
        self.run.log("step", step=step, **{key: value for key, value in record.items() if key != "history"})

    def _repair(self, step: int, small: nn.Module, task: Task, chosen: Keep, keep: Keep) -> dict[str, Any]:
        """Repair a model in one process and store it; returns what was done."""
        assert self.repairs != "off"
        model, record = repair_cut(
            small,
            task,
            chosen,
            how=self.repairs,
            must=self.must_repair,
            seed=self.run.seed,
            progress=self.run.progress,
        )
        store.save(self._folder(step), model, keep, self.task.graph)
        return record

    def _choose(self, task: Task, kept: Keep, step: int) -> tuple[dict[str, list[int]], Pruned, float]:
        """Let the method choose in the model of the step before.

        Returns:
            The units of the original that stay, the choice in terms of that model, and the share of the original's cost
            that the step may leave.
        """
        name, graph = self.budget.name, self.task.graph
        whole, now = cost.of(graph, name, {}), cost.of(task.graph, name, {})
        share = (self.budget.limit(whole) / whole) ** (step / self.number)
        left = share * whole / now
        if left >= 1 and step < self.number:  # the step before left less than it might
            return {name: list(units) for name, units in kept.items()}, Pruned(), share
        budget = Budget(**{name: min(1.0, left) * (1 - 1e-9)})
        found = self.method.prune(task, budget, self._bounded(task.graph), OfStep(self.run, step))
        if found.weights is not None:
            raise UserError(
                f"steps={self.number}: method {self.method.name} brings weights of its own, which the training between "
                "steps would replace; leave steps out."
            )
        return compose(graph, kept, task.graph, found.keep), found, share

    def _bounded(self, graph: Graph) -> Options:
        """Return the method's options for a small model, with the fewest units as they are of the original."""
        if not isinstance(self.config, Bounds):
            return self.config
        config = self.config
        least = min_units(self.task.graph, config.floor, config.cap, config.freeze, config.only)
        known = [name for name in graph.axes if name in least]
        floor = {escape(name): min(graph.axes[name].size, least[name][0]) for name in known}
        free = [escape(name) for name in known if least[name][0] < self.task.graph.axes[name].size]
        return replace(config, floor=floor, cap=1.0, freeze=(), only=tuple(free))

    def _chart(self) -> charts.Chart:
        """Return the chart of the metric on val after each step."""
        metric = self.task.metric
        lines: dict[str, list[tuple[float, float | None]]] = {}
        for step in range(1, self.number):
            record = read_json(self._folder(step) / DONE, StepRecord)
            repaired, recovered = record.repaired, record.recovered
            values = {}
            if repaired is not None and repaired.on_val is not msgspec.UNSET:
                values |= {"cut, norms renewed": repaired.on_val.cut, "repaired": repaired.on_val.repaired}
            if recovered is not None:
                values["trained"] = getattr(recovered.on_val, recovered.kept)
            for name, value in values.items():
                lines.setdefault(name, []).append((step, value))
        return charts.Lines(
            title="Pruned in steps",
            note=f"{self.number} steps; the last one is the pruned, repaired and recovered model above.",
            x_label="step",
            y_label=f"{metric.key} on val",
            series=lines,
        )


class OfStep:
    """The run that a method is called with in a step; see `methods.Run`.

    Args:
        run: The run's folder.
        step: The number of the step.
    """

    def __init__(self, run: RunFolder, step: int):
        self.run, self.step = run, step
        self.seed, self.progress, self.processes = run.seed, run.progress, run.processes

    def folder(self, name: str) -> Path:
        """Return the folder of that name within the step's."""
        return self.run.folder(f"prune/{self.step}/{name}")

    def log(self, event: str, **values: object) -> None:
        """Append a line to the run's log, with the number of the step."""
        self.run.log(event, step=self.step, **values)

    def write(self, action: Callable[[], object]) -> None:
        """Call `action` in one process only; see `RunFolder.write`."""
        self.run.write(action)


def compose(graph: Graph, kept: Keep, inner: Graph, chosen: Keep) -> dict[str, list[int]]:
    """Say in terms of the original what a choice in a small model keeps.

    Args:
        graph: The graph of the original.
        kept: The units of the original that the small model has.
        inner: The graph of the small model.
        chosen: The units of the small model that stay.

    Returns:
        The units of the original that stay.

    Raises:
        PruningError: The axes of the small model are not those of the original.
    """
    strange = [name for name in inner.axes if len(kept.get(name, ())) != inner.axes[name].size]
    if strange:
        raise PruningError(
            f"the axes of the smaller model are not those of the original ({', '.join(strange[:3])}), so it cannot be "
            "pruned in steps; leave steps out."
        )
    return {
        name: [units[place] for place in chosen.get(name, range(len(units)))]
        for name, units in ((name, kept[name]) for name in graph.axes)
    }


def within(kept: Keep, keep: Keep, inner: Graph) -> dict[str, list[int]]:
    """Say in terms of a small model what stays of it; the reverse of `compose`.

    Args:
        kept: The units of the original that the small model has.
        keep: Those of them that stay.
        inner: The graph of the small model.

    Returns:
        The units of the small model that stay.
    """
    return {name: [list(kept[name]).index(unit) for unit in keep[name]] for name in inner.axes}


def split_epochs(epochs: float, number: int) -> list[float]:
    """Split the epochs of recovery into those of the steps: whole ones, as even as can be, and a fraction last."""
    each, more = divmod(int(epochs), number)
    parts: list[float] = [each + (step >= number - more) for step in range(number)]
    return [*parts[:-1], parts[-1] + (epochs - int(epochs))]
