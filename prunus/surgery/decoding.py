"""Calls with a cache, as a language model gets them when it generates; a proof makes them, too.

The model gets the first tokens of a sequence, and then the others one by one, each time with the cache of keys and
values that it returned. It does so twice: without a mask, and with a mask that pads one row at its left, one at its
right, and one not at all. An encoder-decoder gets its encoder's output again in each later call. Source: ours; the
names of the arguments are those of transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from prunus.graph import Outputs, select_outputs

FIRST, STEPS = 4, 1  # the number of tokens in the first call, and of calls with one token after it
ROWS = 3  # of a padded call: one padded at the left, one at the right, one not at all
CACHES = "cache", "past_key_values"  # the second before transformers 5.24
MASK = "attention_mask"
TOKENS, OF_DECODER, ENCODED = "input_ids", "decoder_input_ids", "encoder_outputs"


class Decoding(NamedTuple):
    """A series of calls of a model: first some tokens at once, then one token a call.

    Args:
        name: The name of the series, for `Proof.calls`.
        tokens: The name of the argument that takes tokens.
        padded: Whether the calls get a mask that marks padding.
        inputs: The model's arguments by name, with the tokens of the whole sequence and a mask for all of them.
    """

    name: str
    tokens: str
    padded: bool
    inputs: dict[str, Any]


def decodings(model: nn.Module, example: Any) -> list[Decoding]:
    """List the series of calls with a cache that a model takes.

    Args:
        model: The model.
        example: The example on which it was traced.

    Returns:
        The series; none if the model has no cache, or its example holds no tokens.
    """
    takes = inspect.signature(model.forward).parameters
    given = _by_name(takes, example)
    tokens = OF_DECODER if OF_DECODER in takes else TOKENS
    if not {"use_cache", tokens} <= takes.keys() or takes.keys().isdisjoint(CACHES):
        return []
    if not _is_tokens(given.get(tokens)):
        return []
    length = FIRST + STEPS
    sequence = _stretched(given[tokens], length)
    plain: dict[str, Any] = {tokens: sequence}
    padded: dict[str, Any] = {tokens: sequence.expand(ROWS, length)}
    if tokens == TOKENS:
        padded[MASK] = _mask(length)
    else:
        encoded = {
            n: v for n, v in given.items() if n not in (MASK, "labels") and not n.startswith("decoder_")
        }
        plain |= {name: _rows(value, 1) for name, value in encoded.items()}
        padded |= {name: _rows(value, ROWS) for name, value in encoded.items()}
        if _is_tokens(given.get(TOKENS)):
            padded[MASK] = _mask(given[TOKENS].shape[1])
    found = [Decoding("decode", tokens, False, plain)]
    if MASK in padded and MASK in takes:
        found.append(Decoding("decode padded", tokens, True, padded))
    return found


def _rows(value: Any, number: int) -> Any:
    """The first example of an input, `number` times."""
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    return value[:1].expand(number, *value.shape[1:])


def _by_name(takes: Mapping[str, Any], example: Any) -> dict[str, Any]:
    """The parts of an example by the names of the model's arguments."""
    if isinstance(example, dict):
        return example
    values = example if isinstance(example, (tuple, list)) else (example,)
    return dict(zip(takes, values, strict=False))


def _is_tokens(value: Any) -> bool:
    """Whether an input holds token ids: whole numbers (examples, positions)."""
    is_matrix = isinstance(value, torch.Tensor) and value.dim() == 2 and value.numel() > 0
    return is_matrix and not value.is_floating_point()


def _stretched(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """The first row of some tokens, repeated up to a length."""
    row = tokens[:1]
    return row.repeat(1, -(-length // row.shape[1]))[:, :length]


def _mask(length: int) -> torch.Tensor:
    """A mask (ROWS, length): one row padded at the left, one at the right end of the first call, one not at all."""
    mask = torch.ones(ROWS, length, dtype=torch.long)
    mask[0, 0] = mask[1, min(FIRST, length) - 1] = 0
    return mask


class NoCacheError(Exception):
    """A model that takes a cache returned none."""


class Generating(nn.Module):
    """A module that runs a series of calls of a model, as if it generated.

    Args:
        model: The model.
        decoding: The series.
        outputs: The outputs that are compared; None: all but the cache.
    """

    def __init__(self, model: nn.Module, decoding: Decoding, outputs: Outputs | None):
        super().__init__()
        self.model, self.decoding, self.outputs = model, decoding, outputs

    def forward(self, **inputs: Any) -> list[torch.Tensor]:
        """Make the calls and return their outputs that are compared; NoCacheError if the model returns no cache."""
        name = self.decoding.tokens
        tokens, masked = inputs.pop(name), name == TOKENS and self.decoding.padded
        mask = inputs.pop(MASK) if masked else None
        inputs["use_cache"] = True
        found: list[torch.Tensor] = []
        start = 0
        for end in range(FIRST, tokens.shape[1] + 1):
            given = {**inputs, name: tokens[:, start:end]}
            if mask is not None:
                given[MASK] = mask[:, :end]
            answer = self.model(**given)
            caches = {key: value for key, value in answer.items() if key in CACHES}
            if not caches:
                raise NoCacheError
            start = end
            if name == OF_DECODER:
                inputs = {key: inputs[key] for key in (MASK, "use_cache") if key in inputs}
                inputs[ENCODED] = (answer.encoder_last_hidden_state,)
            inputs |= caches
            counted = {key: value for key, value in answer.items() if key not in CACHES}
            found += select_outputs(counted, self.outputs)
        return found
