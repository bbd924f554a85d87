"""The batches of inputs to which weights are fitted, as a user gives them."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from prunus.errors import UserError
from prunus.inputs import count_examples, in_words, plain, tensors_in


def read_batches(batches: Iterable[Any]) -> list[Any]:
    """Read batches of inputs to their end.

    Args:
        batches: Inputs as a model takes them: a tensor, a tuple or a dict each.

    Returns:
        The batches.

    Raises:
        UserError: They are no batches, there is none, or one holds no example.
    """
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        raise UserError(
            f"repair: expected an iterable of batches, such as a list, got {in_words(batches)}; give one batch as "
            "[batch]."
        )
    given = [plain(batch) for batch in batches]
    if not given:
        raise UserError("repair: expected at least one batch of inputs, got none; give data.")
    for number, batch in enumerate(given, 1):
        if not tensors_in(batch) or not count_examples(batch):
            raise UserError(
                f"repair: expected inputs of one example or more in each batch, got {in_words(batch)} as number "
                f"{number}; leave it out."
            )
    return given
