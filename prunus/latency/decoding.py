"""The time of a step of decoding: one token more, with the keys and values of those before it in a cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from prunus.errors import UserError
from prunus.export import Call, programs
from prunus.inputs import move, tensors_in
from prunus.latency.operator_timing import Runtime


class Decoding(Runtime):
    """A step of decoding in torch, with a cache of a stated length, as a runtime for budgets of milliseconds.

    Beside reading the cache, a step multiplies by one token, so trace the graph on one token for each text:

        graph = prunus.trace(model, {"input_ids": tokens[:, :1]})
        meter = prunus.latency.Meter(model, graph, runtime=prunus.latency.Decoding(512))
        keep = prunus.select(graph, scores, prunus.selection.Metered(latency_ms=0.6, meter=meter))

    For a budget of the prompt's milliseconds, take the plain runtime and a graph that is traced on a whole prompt. The
    model has to take `use_cache` and `cache` (or `past_key_values`), and to return its cache under `past_key_values`,
    as the models of transformers do.

    Args:
        length: The number of tokens in the cache.
    """

    def __init__(self, length: int):
        if length < 1:
            raise UserError(f"length should be the number of tokens in the cache, from 1, but is {length!r}.")
        self.length = length
        self.name = f"torch-after-{length}-tokens"

    def prepare(self, model: nn.Module, example: Any) -> Call:
        """Prepare a call that runs one step, and then takes the step's token out of the cache again.

        Args:
            model: The model.
            example: Token ids (B, T), alone or first in a tuple or dict.

        Returns:
            The call.

        Raises:
            UserError: The model returns no cache that can be cut back by a token.
        """
        device = programs.device_of(model)
        token = move(tensors_in(example)[0], device)[:, :1]
        with torch.no_grad():
            output = model(token.expand(-1, self.length), use_cache=True)
        cache: Any = getattr(output, "past_key_values", None)
        if cache is None or not callable(getattr(cache, "crop", None)):
            raise UserError(
                f"a {type(model).__name__} returns no past_key_values that can be cut back with crop(-1), so a step "
                "of decoding cannot be timed again and again; time the prompt with runtime='torch'."
            )

        takes = inspect.signature(model.forward).parameters
        given = {"cache" if "cache" in takes else "past_key_values": cache, "use_cache": True}

        def run() -> object:
            with torch.no_grad():
                step = model(token, **given)
            cache.crop(-1)
            programs.synchronize(device)
            return step

        return run
