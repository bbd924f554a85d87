"""The hooks by which a method takes part in a training."""

from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from prunus.train.checkpoint import Training


class Along:
    """The hooks by which a method takes part in a training; these do nothing, and a method overrides some.

    A hook may replace the data of parameters and of the optimiser's state, also by smaller tensors.
    """

    finished = False  # True: the training ends with this step

    def decays(self, parameter: Tensor) -> bool:
        """Decide whether weight decay acts on a parameter.

        Args:
            parameter: A parameter that is trained.

        Returns:
            By default True from two dimensions on: decayed biases and scales of norms would only distort.
        """
        return parameter.dim() > 1

    def after_step(self, at: Training, step: int, lr: float) -> None:
        """Act on the model after a step of the optimiser.

        Args:
            at: The training, whose model and optimiser may be changed.
            step: The number of the step since the start, from 0.
            lr: The learning rate of that step.
        """

    def state(self) -> dict[str, Any]:
        """Describe the state that a checkpoint must hold beside the model's tensors.

        Returns:
            Plain JSON.
        """
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state, before the model's tensors are restored from the checkpoint.

        Args:
            state: A result of `state`.
        """


class Search(Protocol):
    """A search that learns while a network trains, such as DHP or PASS."""

    @property
    def finished(self) -> bool:
        """Whether the training may end with this step."""
        ...

    def decays(self, parameter: Tensor) -> bool:
        """Return whether weight decay acts on a parameter."""
        ...

    def step(self, optimizer: Optimizer) -> None:
        """Take a step of the search, after each of the optimiser, before its gradients are cleared."""

    def state(self) -> dict[str, Any]:
        """Return the state beside the module's tensors, as plain JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""


class Beside(Along):
    """Runs a search, such as DHP or PASS, while a network trains.

    Args:
        search: The search; it decides about weight decay and when the training ends.
    """

    def __init__(self, search: Search):
        self.search = search
        self.decays, self.state, self.restore = search.decays, search.state, search.restore

    @property
    def finished(self) -> bool:
        """Whether the search has ended."""
        return self.search.finished

    def after_step(self, at: Training, step: int, lr: float) -> None:
        """Take the search's step."""
        self.search.step(at.optimizer)
