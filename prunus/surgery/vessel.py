"""A copy of a model that is given other tensors again and again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from prunus.graph import OWN_NAMES, Block, Integers, kept_tensors, make_skeleton, set_kept, slots
from prunus.surgery.bypass import bypass
from prunus.surgery.sampling import type_like


class Vessel:
    """A bare copy of a model, to hold other tensors.

    Args:
        model: The model; it is not changed.
        names: The names by which its tensors are known here, where they differ from the model's own (see structure.py).
        skipped: Blocks that the copy passes by (see bypass.py).
    """

    def __init__(self, model: nn.Module, names: Mapping[str, str] = OWN_NAMES, skipped: Iterable[Block] = ()):
        self.model = make_skeleton(model, real=True)
        for block in skipped:
            bypass(self.model, block)
        self.names = names
        self.slots = {names.get(name, name): held for name, held in slots(self.model).items()}
        self.integers = Integers(self.model, tensors=())
        self.integers.mark(None)
        self.state = {name: tensor.clone() for name, tensor in kept_tensors(self.model).items()}

    def fill(self, tensors: dict[str, torch.Tensor], mode: str, copy: bool) -> None:
        """Hold other tensors, in a mode; what a forward pass stored in the model is put back as it was at the start.

        Args:
            tensors: The parameters and buffers by name.
            mode: "train" or "eval".
            copy: Whether to hold copies of the parameters; buffers are always copied.
        """
        self.integers.restore()
        for name, held in self.slots.items():
            tensor = tensors[name]
            is_parameter = held[0][1] in held[0][0]._parameters
            tensor = tensor.clone() if copy or not is_parameter else tensor
            tensor = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
            for module, attribute in held:
                vars(module)["_parameters" if is_parameter else "_buffers"][attribute] = tensor
        if self.state:
            dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
            state = {
                name: tensor.to(type_like(tensor, dtype), copy=True) for name, tensor in self.state.items()
            }
            set_kept(self.model, state)
        if mode == "train":
            self.model.train()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that it holds now, by name."""
        held = {name: getattr(*places[0]) for name, places in self.slots.items()}
        kept = kept_tensors(self.model) if self.state else {}
        return held | {self.names.get(name, name): tensor for name, tensor in kept.items()}
