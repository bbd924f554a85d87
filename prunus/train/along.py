"""What a method does beside a training."""

from torch import Tensor

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
