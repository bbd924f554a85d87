"""Inputs and targets of any kind: trees of tensors, how a model is called on them, and how many examples they hold."""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """Call a model on inputs.

    Args:
        model: The model, or another function.
        inputs: A tensor, a tuple or list of arguments by position, or a mapping of arguments by keyword.

    Returns:
        The model's output.
    """
    inputs = plain(inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def plain(inputs: Any) -> Any:
    """Return inputs by keyword as a dict, whatever kind of mapping holds them; other inputs as they are.

    What tokenizers and image processors of transformers return is a mapping, but no dict.
    """
    return dict(inputs) if isinstance(inputs, Mapping) and not isinstance(inputs, dict) else inputs


def move(tree: Any, device: torch.device) -> Any:
    """Move the tensors of a tree to a device.

    Args:
        tree: Tensors in tuples, lists and dicts; other leaves stay as they are.
        device: The device.

    Returns:
        The tree on the device.
    """
    ahead = device.type != "cpu"  # a copy to the processor that is not waited for could be read too early
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=ahead), tree)


def tensors_in(tree: Any) -> list[Tensor]:
    """List the tensors of a tree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def count_examples(tree: Any) -> int:
    """Count the examples of a batch.

    Args:
        tree: The inputs or targets of a batch.

    Returns:
        The size of the first dimension of the first tensor that has one; 1 if none has.
    """
    return next((len(tensor) for tensor in tensors_in(tree) if tensor.dim()), 1)


def in_words(thing: Any) -> str:
    """Describe inputs, outputs or targets for an error, by the shapes of their tensors."""
    tensors = tensors_in(thing)
    shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors[:4])
    more = f" and {len(tensors) - 4} more" if len(tensors) > 4 else ""
    kind = "tensor" if isinstance(thing, Tensor) else type(thing).__name__
    return f"{kind} {shapes}{more}" if tensors else f"{kind} {thing!r}"[:80]


def take_examples(tree: Any, which: slice) -> Any:
    """Take examples of a batch: of every tensor that has a first dimension, that part of it."""
    return tree_map_only(Tensor, lambda tensor: tensor[which] if tensor.dim() else tensor, tree)


def take_share(batch: Any, share: tuple[int, int]) -> Any:
    """Take the part of a batch that one of several processes computes.

    Args:
        batch: Inputs and targets.
        share: (rank, processes).

    Returns:
        Every `processes`th example from number `rank` on; the last one if there are too few, because every process has
        to compute something.
    """
    rank, processes = share
    return take_examples(
        batch, slice(rank, None, processes) if rank < count_examples(batch) else slice(-1, None)
    )


def random_batch(example: Any, number: int, *, stretch: Mapping[int, float] | None = None) -> Any:
    """Make a batch of random inputs like one: floating tensors are drawn anew, others repeated.

    Args:
        example: One input with a batch dimension of 1.
        number: The number of inputs; their numbers depend on it and the shapes alone.
        stretch: How many times longer dimensions are, by their number, of tensors that have them.

    Returns:
        The batch.
    """
    generator = torch.Generator().manual_seed(number)

    def made(tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        shape = [number, *tensor.shape[1:]]
        for dim, times in (stretch or {}).items():
            if dim < len(shape):
                shape[dim] = math.ceil(times * shape[dim])
        if tensor.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=tensor.dtype)
        for dim, size in enumerate(shape):
            tensor = tensor.index_select(dim, torch.arange(size) % tensor.shape[dim])
        return tensor

    return tree_map_only(Tensor, made, example)


def real_positions(inputs: Any) -> Tensor | None:
    """Return which positions of texts are no padding.

    Args:
        inputs: The inputs of a batch.

    Returns:
        The entry attention_mask, bool (B, T), of inputs by keyword; None if all positions are real.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def hash_tensors(tree: Any, *more: object) -> str:
    """Hash the types, shapes and values of the tensors of a tree, and `more` as text, to 16 hexadecimal digits."""
    whole = hashlib.blake2b(" ".join(map(str, more)).encode(), digest_size=8)
    for tensor in tensors_in(tree):
        data = tensor.detach().cpu().contiguous()
        whole.update(f"{data.dtype} {tuple(data.shape)}".encode())
        whole.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def model_device(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters; the processor if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
