"""What a method does beside a training."""

from typing import Protocol

from torch import Tensor
from torch.optim import Optimizer

from prunus.train.checkpoint import Training


class Along:
    """What a method does beside a training. This one does nothing; a method overrides what it needs.

    It may replace what the parameters and the optimiser's state hold, also by smaller tensors.
    """

    finished = False  # True: the training ends with this step

    def decays(self, parameter: Tensor) -> bool:
        """Whether weight decay acts on a parameter: on biases and the scales of norms it would only distort."""
        return parameter.dim() > 1

    def after_step(self, at: Training, step: int, lr: float) -> None:
        """Called when step number `step`, taken with learning rate `lr`, is done."""

    def state(self) -> dict:
        """What a checkpoint has to hold of it beside the model's tensors, as plain JSON."""
        return {}

    def restore(self, state: dict) -> None:
        """Go to where `state` stands, before the model's tensors are filled from the checkpoint."""


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
        """Called after each step of the optimiser, before its gradients are cleared."""

    def state(self) -> dict:
        """Return the state beside the module's tensors, as plain JSON."""
        ...

    def restore(self, state: dict) -> None:
        """Continue from a state."""


class Beside(Along):
    """Runs a search beside a training."""

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
