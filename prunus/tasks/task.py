"""The contract of a task: what a model is for, as a loss and a metric on data."""

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.data import Data, Split
from prunus.graph import Graph, trace
from prunus.metrics import Metric
from prunus.train import Recipe


class Task(ABC):
    """A model, data, and what the model is for: a loss to train on and a metric to judge by.

    The pipeline, the methods, training and the report know a task by this class alone. A subclass gives `metric`,
    `loss`, `evaluate`, `recipe`, `check` and `asked_of_model`; the rest has a default.

    Args:
        model: The model. Methods leave it as it is.
        data: The splits train, val and test, and an example of the model's input.
        recipe_fields: Fields that every recipe of this task has, whatever it is for, in place of the advised ones.
    """

    metric: Metric
    judges_examples: ClassVar[bool] = False  # whether `verdicts` can say of a single example that it is right

    def __init__(self, model: nn.Module, data: Data, recipe_fields: dict[str, Any] | None = None):
        self.model, self.data = model, data
        self.recipe_fields = recipe_fields or {}
        self._graph: Graph | None = None

    @property
    def example(self) -> Tensor:
        """One input as the model takes it, with a batch dimension of 1."""
        return self.data.example

    @property
    def graph(self) -> Graph:
        """The model's axes; traced when first asked for, and only once. Raises TraceError as `trace` does."""
        if self._graph is None:
            self._graph = trace(self.model, self.example)
        return self._graph

    def on(self, model: nn.Module) -> Self:
        """Return the same task for another model, such as a smaller one; its graph is traced anew."""
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
        """Return the loss, a scalar, of the model's output on a batch against its targets."""

    def training_loss(self, output: Any, target: Tensor, recipe: Recipe) -> Tensor:
        """Return the loss that a training minimises; the plain loss, unless a recipe's fields change it."""
        return self.loss(output, target)

    def distil(self, output: Any, teacher_output: Any, temperature: float) -> Tensor:
        """Return how far an output is from a teacher's, a scalar: the mean squared difference of their tensors."""
        pairs = zip(_floating(output), _floating(teacher_output), strict=True)
        losses = [F.mse_loss(one.float(), other.float()) for one, other in pairs]
        return sum(losses[1:], losses[0])

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Return {metric.key: ..., "loss": ...} of `model` over all of `split`, in evaluation mode."""

    def verdicts(self, output: Any, target: Tensor) -> Tensor:
        """Return whether each example of a batch (B, ...) is right: bool (B,); asked if `judges_examples` is True.

        With it, a search can drop a network after a part of the images.
        """
        raise NotImplementedError(
            f"{type(self).__name__} judges no single examples (judges_examples is False)"
        )

    @abstractmethod
    def recipe(self, purpose: str) -> Recipe:
        """Return a recipe for "scratch", "tune" (weights trained on like data) or "recover" (after pruning)."""

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raise UserError, saying what to do, if `model` does not fit the data; called once, before anything else."""

    @abstractmethod
    def asked_of_model(self) -> dict[str, Any]:
        """Return the arguments, plain JSON, that a model named by a SPEC is built with."""


def _floating(output: Any) -> list[Tensor]:
    """The floating tensors of an output, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
