"""The losses of a user's own task, as one function from (output, target) to a scalar, and checked on a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import UserError
from prunus.inputs import in_words, tensors_in

IGNORED = -100  # a class that does not count, as in torch and transformers

Loss = Callable[[Any, Any], Tensor]
Named = Mapping[str, Loss | tuple[Loss, float]]  # losses by name, each with its weight (1 if it has none)
ONLY = "loss"  # the name of a loss that is the only one


@dataclass(frozen=True)
class Losses:
    """Losses by name, and their weighted sum.

    Args:
        parts: The losses with their weights; None: the model returns its loss.
    """

    parts: Mapping[str, tuple[Loss, float]] | None

    @classmethod
    def of(cls, loss: Loss | Named | None) -> "Losses":
        """Make it from what a user gives; UserError unless that is a function, several by name, or None."""
        if loss is None:
            return cls(None)
        named = loss if isinstance(loss, Mapping) else {ONLY: loss}
        parts = {name: each if isinstance(each, tuple) else (each, 1.0) for name, each in named.items()}
        for name, part in parts.items():
            if len(part) != 2 or not callable(part[0]) or not isinstance(part[1], int | float):
                raise UserError(
                    f"loss: expected a function (output, target) -> scalar, or such functions by name, each alone or "
                    f"as (function, weight); {name} is {part[0] if len(part) == 1 else part!r}."
                )
        if not parts:
            raise UserError(
                "loss: expected a loss by name at least, got an empty dict; None: the model returns it."
            )
        return cls(parts)

    def values(self, output: Any, target: Any) -> dict[str, Tensor]:
        """Compute every loss by name, each times its weight."""
        if self.parts is None:
            return returned_losses(output)
        return {name: loss(output, target) * weight for name, (loss, weight) in self.parts.items()}

    def are_missing(self, output: Any) -> bool:
        """Return whether the model should have returned its loss and has not, as detectors do in evaluation mode."""
        return self.parts is None and find_losses(output) is None

    def total(self, output: Any, target: Any) -> Tensor:
        """Compute the weighted sum of the losses."""
        first, *others = self.values(output, target).values()
        return sum(others, first)


def returned_losses(output: Any) -> dict[str, Tensor]:
    """Find the loss in a model's output, as `find_losses`; UserError if there is none."""
    found = find_losses(output)
    if found is None:
        raise UserError(
            f"loss=None is for models that return their loss, but the output is {in_words(output)}, without a loss. "
            "Give loss=fn(output, target), or batches with the targets under the name by which the model takes them."
        )
    return found


def find_losses(output: Any) -> dict[str, Tensor] | None:
    """Find the loss in a model's output: its `loss`, a dict of scalars, or a scalar that comes first; or None."""
    if isinstance(output, Mapping):
        if isinstance(output.get(ONLY), Tensor):
            return {ONLY: output[ONLY]}
        if output and all(isinstance(value, Tensor) and not value.dim() for value in output.values()):
            return {str(name): value for name, value in output.items()}
    found = getattr(output, ONLY, None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    found = output if isinstance(output, Tensor) else found
    return {ONLY: found} if isinstance(found, Tensor) and not found.dim() else None


def check_losses(losses: Losses, model: nn.Module, output: Any, target: Any) -> None:
    """Check the losses on a batch, whose output was computed with gradients.

    Raises:
        UserError: A loss fails, is not a scalar, is NaN or infinite, or has no gradient.
    """
    at = f"on the first batch of train (output {in_words(output)}, target {in_words(target)})"
    try:
        values = losses.values(output, target)
    except UserError:
        raise
    except Exception as error:  # whatever a user's own function raises
        raise UserError(f"the loss failed {at}: {type(error).__name__}: {error}") from error
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.numel() != 1 or value.dim():
            raise UserError(
                f"{name} should be a scalar tensor, but is {in_words(value)} {at}. Reduce it, for example with .mean()."
            )
        if not value.isfinite():
            raise UserError(f"{name} is {value.item()} {at}. {_suspect(target)}")
    total = losses.total(output, target)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        return  # training says so
    gradients = torch.autograd.grad(total, trained, allow_unused=True) if total.requires_grad else ()
    if not any(gradient is not None for gradient in gradients):
        raise UserError(
            f"the loss has no gradient {at}: no parameter of the model leads to it. It should be computed from the "
            "output by differentiable functions of torch, without argmax, detach(), item() or numpy."
        )


def _suspect(target: Any) -> str:
    """Say what to look at if a loss is not finite."""
    classes = [each for each in tensors_in(target) if each.dtype == torch.int64]
    if classes and all(bool((each == IGNORED).all()) for each in classes):
        return f"All classes in the target are {IGNORED}, which cross-entropy leaves out; give true ones."
    return "Check the inputs, the targets and the model's weights."
