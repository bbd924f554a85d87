"""A batch of a user's loader as inputs and targets."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from prunus.errors import UserError
from prunus.inputs import tensors_in

TARGETS = ("labels", "label", "targets", "target")  # keys of a batch that is a dict
Unpack = Callable[[Any], tuple[Any, Any]]  # maps a batch to (inputs, targets)


def unpack(batch: Any) -> tuple[Any, Any]:
    """Part a batch into inputs and targets.

    Args:
        batch: (x, y): the model is called with x; (x1, x2, ..., y): with x1, x2, ... by position; a dict: without its
            target (`TARGETS`) by keyword; a tensor alone, also as the only one of a tuple, is its own target.

    Returns:
        The inputs, and the targets.

    Raises:
        UserError: The batch has no targets, or has another form.
    """
    if isinstance(batch, Tensor):
        return batch, batch
    if isinstance(batch, Mapping):
        found = [key for key in TARGETS if key in batch]
        if len(found) != 1:
            keys = ", ".join(map(str, batch)) or "none"
            raise UserError(
                f"expected a batch with its targets under one of the keys {', '.join(TARGETS)}, but "
                f"{'several' if found else 'none'} of them {'are' if found else 'is'} there; the keys are {keys}. Give "
                "unpack=fn, which maps a batch to (inputs, targets)."
            )
        return {str(key): value for key, value in batch.items() if key != found[0]}, batch[found[0]]
    if isinstance(batch, (tuple, list)) and batch:
        *inputs, last = batch
        if not inputs:
            return unpack(last)
        return (inputs[0], last) if len(inputs) == 1 else (tuple(inputs), last)
    raise UserError(
        f"expected a batch that is a tensor, a tuple (inputs, targets) or a dict, got {_in_words(batch)}. Give "
        "unpack=fn, which maps a batch to (inputs, targets)."
    )


def with_targets(batch: Any) -> tuple[Any, Any]:
    """Part a batch for a model that returns its loss: all of a dict is its input, the targets among it.

    Args:
        batch: As for `unpack`; the targets of a tuple (x, ..., y) are the model's last argument.

    Returns:
        The inputs, and the targets; None if there are none.
    """
    if isinstance(batch, Mapping):
        found = [batch[key] for key in TARGETS if key in batch]
        return {str(key): value for key, value in batch.items()}, found[0] if found else None
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return tuple(batch), batch[-1]
    return unpack(batch)


def check_unpacked(pair: Any, what: str) -> tuple[Any, Any]:
    """Return the result of a user's `unpack`; UserError unless it is (inputs, targets) with tensors to read."""
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise UserError(f"{what}: unpack should return (inputs, targets), but returned {_in_words(pair)}.")
    inputs, targets = pair
    if isinstance(inputs, Mapping) and not isinstance(inputs, dict):
        inputs = dict(inputs)
    if not tensors_in(inputs):
        raise UserError(
            f"{what}: the inputs of a batch should hold a tensor, but are {_in_words(inputs)}. Give a collate_fn, or "
            "unpack=fn, that makes tensors."
        )
    return inputs, targets


def _in_words(thing: Any) -> str:
    """Describe a batch for an error."""
    size = f" of {len(thing)}" if isinstance(thing, (tuple, list, dict)) else ""
    return f"{type(thing).__name__}{size}"
