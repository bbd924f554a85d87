"""A task of a user's own, made from a model, loaders, a loss and a metric.

task = prunus.Task(model, train=loader, val=loader, test=loader, loss=F.mse_loss, metric=mean_error)
prunus.prune(task=task, budget=prunus.Budget(macs=0.5), method="taylor", out="run/")
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus import data
from prunus.data import Data, Examples, LoaderSplit, StreamSplit, own_randomness, reseed, split_given
from prunus.errors import UserError, one_line
from prunus.graph import Outputs
from prunus.inputs import call, count_examples, in_words, model_device, move, take_examples
from prunus.tasks import _contract
from prunus.tasks._answers import Answer, plain
from prunus.tasks._contract import File
from prunus.tasks._losses import Loss, Losses, Named, check_losses
from prunus.tasks._measures import (
    Average,
    Measure,
    Torchmetric,
    check_number,
    describe_metric,
    is_torchmetric,
)
from prunus.train import Recipe, in_mode

BATCH_SIZE = 64  # where the examples are no loader, which has its own
RECIPES = {
    "scratch": Recipe(
        epochs=30, batch_size=BATCH_SIZE, optimizer="adamw", lr=1e-3, warmup_epochs=1, precision="no"
    ),
    "tune": Recipe(
        epochs=5, batch_size=BATCH_SIZE, optimizer="adamw", lr=3e-4, warmup_epochs=0.2, precision="no"
    ),
    "recover": Recipe(
        epochs=10, batch_size=BATCH_SIZE, optimizer="adamw", lr=5e-4, warmup_epochs=0.5, precision="no"
    ),
}
CPU = torch.device("cpu")
DISTILL_WEIGHT = 0.5  # in recovery, if a user says how to distil


class Task(_contract.Task):
    """A model with a loss, a metric and data of the user's own.

    Args:
        model: The model; methods leave it unchanged.
        train: The examples to train on: a torch DataLoader, a list of batches, or another iterable of batches that can
            be read again and again. A batch is (x, y), (x1, x2, ..., y), a dict with the target under labels, label,
            targets or target, or a tensor that is its own target.
        val: The examples that choices are made on.
        test: The examples that no choice is made on; None: results are those on val, and the report says so.
        loss: loss(output, target) -> scalar tensor; several by name, each as loss or (loss, weight); or None if the
            model is called with the targets and returns its loss, as those of transformers do, or does so in training
            mode only, as detectors do.
        metric: metric(output, target) -> number, averaged over examples; a torchmetrics.Metric; or None for the loss.
        metric_name: The metric's name; None: the name of the function or class.
        unit: The metric's unit, such as "dB".
        higher_is_better: Whether a higher metric is a better model; None: as the torchmetrics.Metric says, True for a
            function.
        digits: How many digits of the metric are shown; None: 2 with a unit, 4 without one.
        prediction: prediction(output) is what the metric gets for an output; None: a function gets the output, a
            torchmetrics.Metric the output or its `logits`.
        distill: distill(output, teacher_output) -> scalar, added in recovery; None: no distillation, unless the recipe
            has a distill_weight (then the mean squared difference of the outputs).
        read: read(file) returns the model's input for a file, with a batch dimension of 1, for `prunus predict`; None:
            files are not answered.
        answer: answer(output) returns what `prunus predict` prints of an output: a text, a number, a dict, or a PIL
            image, which it writes; None: the tensors of the output, after `prediction`.
        unpack: unpack(batch) -> (inputs, target), for batches of another form; inputs are a tensor, a tuple of
            arguments, or a dict of arguments by keyword.
        outputs: The outputs that count and keep their sizes, such as "logits" or "0", as in `trace`; None: all. Others,
            such as features that a model returns beside them, may shrink.
        example: One input with a batch dimension of 1; None: the first of train.
        name: A name of the data, for messages and the report.
        recipe: Fields of `train.Recipe` that replace the advised ones in every training, such as {"lr": 1e-2}.

    Raises:
        UserError: An argument is wrong, or a loader is empty or can be read once only.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        train: Any,
        val: Any,
        test: Any = None,
        loss: Loss | Named | None,
        metric: Any = None,
        metric_name: str | None = None,
        unit: str = "",
        higher_is_better: bool | None = None,
        digits: int | None = None,
        prediction: Callable[[Any], Any] | None = None,
        distill: Callable[[Any, Any], Tensor] | None = None,
        read: Callable[[Any], Any] | None = None,
        answer: Callable[[Any], Any] | None = None,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        outputs: Outputs | None = None,
        example: Any = None,
        name: str = "own data",
        recipe: Mapping[str, Any] | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise UserError(f"the model should be a torch.nn.Module, but is {in_words(model)}.")
        self.metric = describe_metric(metric, metric_name, unit, higher_is_better, digits)
        self.losses, self.measured, self.prediction, self.distill = (
            Losses.of(loss),
            metric,
            prediction,
            distill,
        )
        self.outputs, self.read, self.answered = outputs, read, answer
        unpack = unpack or (data.with_targets if loss is None else data.unpack)
        given = {"train": train, "val": val} | ({} if test is None else {"test": test})
        splits = {split: split_given(source, split, unpack) for split, source in given.items()}
        if example is None:
            example = self._example(next(splits["train"].batches(BATCH_SIZE))[0])
        made = Data(name, None, example, splits["train"], splits["val"], splits.get("test"))
        super().__init__(model, made, dict(recipe or {}))
        self.recipe("scratch")  # raises for wrong fields

    def _example(self, inputs: Any) -> Any:
        """The first example of a batch, without the targets that a model is only trained with."""
        if self.losses.parts is None and isinstance(inputs, dict):
            inputs = {key: value for key, value in inputs.items() if key not in data.TARGETS}
        return take_examples(inputs, slice(1))

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the weighted sum of the losses of a batch."""
        return self.losses.total(output, target)

    def distil(self, output: Any, teacher_output: Any, temperature: float, target: Any = None) -> Tensor:
        """Return the user's loss of distillation, or the mean squared difference from the teacher."""
        if self.distill is None:
            return super().distil(output, teacher_output, temperature, target)
        return self.distill(output, teacher_output)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Return the metric, the loss, and each loss by name if there are several, over all of `split`.

        The loss is NaN if the model returns it in training mode only.
        """
        device = model_device(model)
        measure = self._measure(device)
        sums: dict[str, float] = {}
        total = 0
        with in_mode(model, False):
            for batch in split.batches(BATCH_SIZE):
                inputs, target = move(batch, device)
                output, count = call(model, inputs), count_examples(inputs)
                values = {} if self.losses.are_missing(output) else self.losses.values(output, target)
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * count
                if measure is not None:
                    measure.add(output, target, count)
                total += count
        means = {name: value / total for name, value in sums.items()}
        loss = sum(means.values()) if means else math.nan
        named = {f"loss_{name}": value for name, value in means.items()} if len(means) > 1 else {}
        return {self.metric.key: loss if measure is None else measure.value(), "loss": loss} | named

    def _measure(self, device: torch.device) -> Measure | None:
        """A new measurement of the metric; None if the metric is the loss."""
        metric, prediction = self.measured, self.prediction
        if metric is None:
            return None
        if is_torchmetric(metric):
            return Torchmetric(metric, prediction or plain_prediction, device)
        return Average(
            metric if prediction is None else lambda output, target: metric(prediction(output), target)
        )

    def read_file(self, file: File) -> Any:
        """Return what the user's `read` makes of a file."""
        if self.read is None:
            raise UserError(
                "this prunus.Task does not say how a file becomes an input; give read=fn(file), which returns the "
                "input with a batch dimension of 1, or call the model yourself: prunus.load(run).model(input)."
            )
        try:
            return self.read(file)
        except Exception as error:  # whatever a user's own function raises
            raise UserError(f"read failed on {file}: {one_line(error)}") from error

    def answer(self, output: Any, most: int) -> Answer:
        """Return what the user's `answer` makes of an output, otherwise its predictions or tensors."""
        make = self.answered or self.prediction
        found = output if make is None else make(output)
        return plain(found)

    def recipe(self, purpose: str) -> Recipe:
        """Return a recipe to begin with, in full precision, with the loader's batch size."""
        recipe, train = RECIPES[purpose], self.data.train
        if purpose == "recover" and self.distill is not None:
            recipe = replace(recipe, distill_weight=DISTILL_WEIGHT)
        if isinstance(train, (LoaderSplit, StreamSplit)):
            recipe = replace(recipe, batch_size=train.batch_size)
        try:
            return recipe.adapt(**self.recipe_fields)
        except TypeError as error:
            raise UserError(f"recipe: {error}; the fields are those of prunus.train.Recipe.") from error

    def check(self, model: nn.Module) -> None:
        """Raise UserError if the model cannot be called with the batches, or loss or metric fail on the first one."""
        train = self.data.train
        with own_randomness(), in_mode(model, False):
            reseed(0)
            device = model_device(model)
            self._run(model, move(self.example, device), "one example")
            inputs, target = move(next(train.batches(BATCH_SIZE, seed=0)), device)
            with torch.enable_grad():
                output = self._run(model, inputs, "the first batch of train")
                trained = model
                if self.losses.are_missing(output):
                    output, trained = self._train_mode(model, inputs)
                check_losses(self.losses, trained, output, target)
            with torch.no_grad():
                self._check_metric(model, self.data.val, "the first batch of val")
                if self.data.test is not None:
                    self._check_metric(model, self.data.test, "the first batch of test")

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise UserError if the recipe has another batch size than the loader of train."""
        super().check_recipe(recipe)
        train = self.data.train
        if isinstance(train, (LoaderSplit, StreamSplit)) and recipe.batch_size != train.batch_size:
            raise UserError(
                f"the batch size should be {recipe.batch_size}, but the loader of train gives batches of "
                f"{train.batch_size}; set it where the loader is made."
            )

    def _train_mode(self, model: nn.Module, inputs: Any) -> tuple[Any, nn.Module]:
        """The output of training mode and the copy that made it, for a model that returns its loss there alone.

        The task then has no loss in evaluation, and is traced with the targets in training mode.
        """
        trained = copy.deepcopy(model).train()
        output = self._run(trained, inputs, "the first batch of train in training mode")
        if not self.losses.are_missing(output):
            if self.measured is None:
                raise UserError(
                    "the model returns its loss in training mode only, so nothing judges it in evaluation; give "
                    "metric=fn(output, target)."
                )
            self.evaluates_loss = False
            self.modes = {"eval": self.example, "train": move(take_examples(inputs, slice(1)), CPU)}
        return output, trained

    def _run(self, model: nn.Module, inputs: Any, what: str) -> Any:
        """The output for inputs; UserError if the model cannot be called with them."""
        try:
            return call(model, inputs)
        except Exception as error:  # whatever a user's own model raises
            raise UserError(
                f"the model cannot be called with {what}, {in_words(inputs)}: {type(error).__name__}: {error}. A tuple "
                "is given by position, a dict by keyword; unpack=fn makes other inputs of a batch."
            ) from error

    def _check_metric(self, model: nn.Module, split: Examples, at: str) -> None:
        """Raise UserError if the model cannot be called with the first batch of a split, or the metric fails on it."""
        device = model_device(model)
        inputs, target = move(next(split.batches(BATCH_SIZE)), device)
        output, measure = self._run(model, inputs, at), self._measure(device)
        if measure is None:
            return
        try:
            measure.add(output, target, count_examples(inputs))
            value = measure.value()
        except UserError:
            raise
        except Exception as error:  # whatever a user's own metric raises
            raise UserError(
                f"{self.metric.key} failed on {at} (output {in_words(output)}, target "
                f"{in_words(target)}): {type(error).__name__}: {error}. prediction=fn makes what it needs of an output."
            ) from error
        check_number(self.metric.key, value, at)

    def asked_of_model(self) -> dict[str, Any]:
        """Return nothing, because the model is there."""
        return {}


def plain_prediction(output: Any) -> Any:
    """Return what a torchmetrics.Metric gets: the output if it is a tensor, otherwise its `logits`."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None:
        raise UserError(
            f"the metric needs predictions, but the output is {in_words(output)}; give prediction=fn(output)."
        )
    return found
