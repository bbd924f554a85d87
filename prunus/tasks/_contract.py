"""The contract of a task: a model, data, and the loss and metric on them; and what it is made from."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn

from prunus.charts import Chart
from prunus.data import AS_EXPECTED, Data, Examples, ImageOptions, load_data
from prunus.errors import UserError
from prunus.files import expand_home
from prunus.graph import Graph, Outputs, trace
from prunus.inputs import call, tensors_in
from prunus.metrics import Metric
from prunus.options import Checked
from prunus.tasks._answers import Answer
from prunus.train import Recipe
from prunus.zoo import expected_images, load_model

File = str | Path | bytes | Image.Image


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The options of a task: a frozen, keyword-only dataclass, whose fields are set by `--NAME VALUE`.

    A task's file in prunus/tasks defines `Options`, which derives from this class, and `make(given, options)`. Its
    docstring explains the options; `prunus tasks NAME` shows it.
    """


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a user gives a built-in task.

    Args:
        model: The model, or its SPEC, which `build_model` builds.
        data: The data, or their SPEC.
        example: One input with a batch dimension of 1; None: as the data say.
        seed: The seed of the choice of val, and of a new model's weights.
        images: How images are read, as far as the user says.
        weights: The file of weights that will be loaded into the model; it may say how images are read.
        workers: The number of processes that read images; None: one for each core.
        skip_broken: Whether to leave out images and texts that cannot be read; otherwise they are an error.
        split_by: "content" or "position"; see `data.load_data`.
    """

    model: nn.Module | str
    data: Data | str
    example: Any = None
    seed: int = 0
    images: ImageOptions = AS_EXPECTED
    weights: str | None = None
    workers: int | None = None
    skip_broken: bool = False
    split_by: str = "content"

    @property
    def image_size(self) -> int | None:
        """The side in pixels to which images are resized; None: the user does not say."""
        return self.images.image_size

    def load_data(self) -> Data:
        """Load labelled images, unless the data are given as an object, with the example that was given.

        Raises:
            UserError: The data cannot be loaded, or are an object, on which options of images have no effect.
        """
        data = self.data
        if isinstance(data, str):
            by_transform = self.images.transform is not None
            data = load_data(
                data,
                seed=self.seed,
                images=self.images,
                expected=None if by_transform else expected_images(self.model, self.weights),
                skip_broken=self.skip_broken,
                split_by=self.split_by,
                workers=self.workers,
            )
        else:
            self.refuse_images("data that are given as an object say themselves how they are read")
        return data if self.example is None else replace(data, example=self.example)

    def refuse_images(self, why: str) -> None:
        """Raise UserError if options say how images are read.

        Args:
            why: Why these options have no effect.
        """
        if self.images.given:
            said = ", ".join(f"{name}={getattr(self.images, name)}" for name in self.images.given)
            raise UserError(f"{why}, so {said} has no meaning; leave it out.")

    def build_model(self, **asked: Any) -> nn.Module:
        """Return the model, or build it from its SPEC with what the task asks of it, its weights by the seed."""
        if not isinstance(self.model, str):
            return self.model
        set_seed(self.seed)
        return load_model(self.model, **asked)


def named(file: File) -> str:
    """Return what a file is called in errors."""
    return str(file) if isinstance(file, str | Path) else "(given)"


def bytes_of(file: File) -> bytes:
    """Read a file that is no image.

    Args:
        file: The file, or its bytes.

    Returns:
        Its bytes.

    Raises:
        UserError: It cannot be read, or is an open image.
    """
    if isinstance(file, bytes):
        return file
    if isinstance(file, Image.Image):
        raise UserError("an open image was given to a model that reads no images; give a file.")
    try:
        return expand_home(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error


class Task(ABC):
    """A model and its purpose: data, a loss to train with, and a metric to evaluate with.

    Runs, methods, training and report use a task only through this class. A subclass defines `metric`, `loss`,
    `evaluate`, `recipe`, `check` and `asked_of_model`; the rest has a default.

    Args:
        model: The model; methods leave it unchanged.
        data: The splits train, val and test, and an example of the model's input.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
    """

    metric: Metric
    further_metrics: tuple[Metric, ...] = ()  # others that `evaluate` returns and the report shows
    is_pretrained: bool = False  # whether a model that a SPEC names has come with trained weights
    judges_examples: ClassVar[bool] = False  # whether `verdicts` can judge a single example
    free_dims: ClassVar[tuple[int, ...]] = (0,)  # of inputs, that exported programs leave free if they can
    evaluates_loss: bool = True  # whether `loss` takes the outputs of evaluation mode, not of training alone
    outputs: Outputs | None = None  # the outputs that keep their sizes, as in `graph.trace`; None: all
    modes: Mapping[str, Any] | None = (
        None  # an example for each mode, as in `graph.trace`; None: the same for both
    )

    def __init__(self, model: nn.Module, data: Data, recipe_fields: dict[str, Any] | None = None):
        self.model, self.data = model, data
        self.recipe_fields = recipe_fields or {}
        self.search_fields: dict[str, Any] = {}
        self._graph: Graph | None = None

    @property
    def example(self) -> Any:
        """One input as the model reads it, with a batch dimension of 1: a tensor, a tuple or a dict."""
        return self.data.example

    @property
    def graph(self) -> Graph:
        """The model's axes, traced at the first access and then stored; TraceError if the model cannot be traced."""
        if self._graph is None:
            self._graph = trace(self.model, self.example, modes=self.modes, outputs=self.outputs)
        return self._graph

    def on(self, model: nn.Module) -> Self:
        """Return the same task for another model, such as a smaller one, whose graph is traced again."""
        other = copy.copy(self)
        other.model, other._graph = model, None
        return other

    def with_weights_of(self, model: nn.Module) -> Self:
        """Return the same task for a model of the same architecture with other weights; it shares the graph."""
        other = self.on(model)
        other._graph = self.graph
        return other

    def with_data(self, data: Data) -> Self:
        """Return the same task on other data of the same kind; it shares the graph if there is one."""
        other = copy.copy(self)
        other.data = data
        return other

    @abstractmethod
    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            output: The model's output for a batch.
            target: The targets of the batch (B, ...).

        Returns:
            A scalar tensor.
        """

    def training_loss(self, output: Any, target: Tensor, recipe: Recipe) -> Tensor:
        """Return the loss that training minimises: `loss`, unless fields of the recipe change it."""
        return self.loss(output, target)

    def distil(self, output: Any, teacher_output: Any, temperature: float, target: Any = None) -> Tensor:
        """Compute the loss of distillation, a scalar; here the mean squared difference from the teacher.

        target: The targets of the batch, for tasks in which they say what of an output counts.
        """
        pairs = zip(_floating(output), _floating(teacher_output), strict=True)
        losses = [F.mse_loss(one.float(), other.float()) for one, other in pairs]
        return sum(losses[1:], losses[0])

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Evaluate `model` in evaluation mode on all of `split`, and put its mode back afterwards (`train.in_mode`).

        Args:
            model: The model.
            split: The examples.

        Returns:
            {metric.key: value, "loss": value}; the loss is NaN if evaluation gives none (`evaluates_loss`).
        """

    def verdicts(self, output: Any, target: Tensor) -> Tensor:
        """Return whether the output for each example of a batch is correct: bool (B,).

        It is called only if `judges_examples` is True; a search can then drop a network after part of the images.
        """
        raise NotImplementedError(
            f"{type(self).__name__} cannot judge single examples (judges_examples is False); use evaluate."
        )

    def examples(self, original: nn.Module, small: nn.Module) -> Sequence[Chart]:
        """Return examples of the test set from which a person can judge both models; a task may have none."""
        return []

    def read_file(self, file: File) -> Any:
        """Read a file as an input of the model, for `prunus predict`.

        A finished run is opened without its data: `self.data` then holds no examples, but the run's classes,
        fingerprint and shape of an input.

        Args:
            file: A file, its bytes, or an open image.

        Returns:
            The input, with a batch dimension of 1: a tensor, a tuple or a dict.

        Raises:
            UserError: The file cannot be read, or the task does not say how.
        """
        raise UserError(
            f"the task {type(self).__name__} does not say how a file becomes an input, so it answers none. Prepare the "
            "input yourself and call the model: prunus.load(run).model(input)."
        )

    def respond(self, inputs: Any) -> Any:
        """Return the model's output for the input of a file; the model is in evaluation mode, gradients are off."""
        return call(self.model, inputs)

    def answer(self, output: Any, most: int) -> Answer:
        """Make an answer for people and programs of an output, for `prunus predict`.

        Args:
            output: What `respond` returned for one input.
            most: How many alternatives to name at most, such as classes, the likeliest first.

        Returns:
            The answer.

        Raises:
            UserError: The task does not say how.
        """
        raise UserError(
            f"the task {type(self).__name__} does not say how an output becomes an answer; call the model yourself: "
            "prunus.load(run).model(input)."
        )

    def conventions(self) -> dict[str, Any]:
        """Return what has to be known to use the model outside of a run, such as names and scales, as plain JSON."""
        return {}

    def restore(self, conventions: dict[str, Any]) -> None:
        """Take over what `conventions` returned in a finished run, as the task of it that was made without its data.

        Args:
            conventions: What the run's result.json holds; empty for older runs.

        Raises:
            KeyError, TypeError, ValueError: They do not fit the task.
        """
        return  # a task without scales has nothing to take over

    @abstractmethod
    def recipe(self, purpose: str) -> Recipe:
        """Return the recipe for "scratch", "tune" (weights trained on similar data) or "recover" (after pruning)."""

    def search_recipe(self, purpose: str = "tune", **advice: Any) -> Recipe:
        """Return the recipe of a method's own training, while it searches.

        Args:
            purpose: As of `recipe`.
            advice: Fields that the method advises; see `Recipe.adapt`.

        Returns:
            The task's recipe with the method's advice and then with what the user asks of searches (`search_fields`,
            where the fields in `methods.Options.fixed_in_search` never are).
        """
        return self.recipe(purpose).adapt(**advice).adapt(**self.search_fields)

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise UserError if recovery cannot follow the recipe; here if it should learn answers that are not there.

        That is so if training and evaluation mode do not share them.
        """
        if recipe.distill_weight and not self.evaluates_loss:
            raise UserError(
                f"distill_weight={recipe.distill_weight:g}: the model answers in training mode with its loss alone, so "
                "there is nothing in which the smaller one could learn from the base; leave it out, or give 0."
            )

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raise UserError, saying what to do, if `model` does not fit the data; a run calls it once, at its start."""

    @abstractmethod
    def asked_of_model(self) -> dict[str, Any]:
        """Return the arguments, plain JSON, with which a model is built from its SPEC."""


def _floating(output: Any) -> list[Tensor]:
    """The floating tensors of an output, in order; scalars, such as a loss that a model returns, are left out."""
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.dim()]
