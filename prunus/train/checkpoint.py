"""The whole state of a training in one file, checkpoint.safetensors, which a kill at any time leaves intact.

Tensors: "model.*" (parameters and buffers), "average.*" (their moving average, if kept), "optimizer.N.*" (of the
N-th trained parameter). All else (position, history, the settings it belongs to) is JSON in the file's header.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.errors import FileError, TrainingError, UserError
from prunus.files import Amount, Count, Real, Record, read_header, read_tensors, shorten, write_tensors

NAME = "checkpoint.safetensors"
POSITION = ("settings", "epoch", "batch", "loss_sum", "seconds", "history")


class State(Record, frozen=True, kw_only=True):
    """The JSON in the header of a checkpoint: the fields of a `Training` that are plain data."""

    remedy: ClassVar[str] = "Remove the file to train from the start."
    settings: dict[str, Any]
    epoch: Count
    batch: Count
    loss_sum: Real
    seconds: Amount
    history: list[dict[str, Any]]
    along: dict[str, Any]


@dataclass
class Training:
    """The state of a training."""

    model: nn.Module
    optimizer: Optimizer
    average: dict[str, Tensor]  # moving average of the floating-point tensors, by name; empty if it is off
    folder: Path | None  # of the checkpoint, if one is kept; all fields below are plain data
    settings: dict[str, Any]  # the recipe and more: a checkpoint of other settings is refused
    along: Any  # a train.Along
    epoch: int = 0
    batch: int = 0  # number of the next one in this epoch
    loss_sum: float = 0.0  # over the batches of this epoch so far
    seconds: float = 0.0  # spent on this epoch so far
    history: list[dict[str, Any]] = field(default_factory=list)  # a row for each epoch


def save(at: Training) -> None:
    """Write the checkpoint atomically, if there is a folder for it.

    Raises TrainingError, and keeps the previous checkpoint, if a tensor holds NaN or infinity.
    """
    if at.folder is None:
        return
    tensors = {f"model.{name}": tensor for name, tensor in named_tensors(at.model).items()}
    tensors |= {f"average.{name}": tensor for name, tensor in at.average.items()}
    for index, values in at.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise TrainingError(
                f"{name} holds NaN or infinity in epoch {at.epoch + 1}. {describe_checkpoint(at)}"
            )
    state = {name: getattr(at, name) for name in POSITION} | {"along": at.along.state()}
    header = {"state": json.dumps(state)}
    write_tensors(at.folder / NAME, tensors, header)


def load(at: Training) -> None:
    """Continue from the checkpoint in at.folder, if there is one.

    Raises UserError if it was made with other settings or for another model, FileError if it is damaged.
    """
    file = at.folder and at.folder / NAME
    if file is None or not file.exists():
        return
    tensors, state = read_tensors(file), read_header(file, "state", State)
    check_same(file, state.settings, at.settings)
    check_position(file, state)
    at.along.restore(state.along)
    restore(file, "model", tensors, named_tensors(at.model))
    restore(file, "average", tensors, at.average)
    restore_optimizer(file, at.optimizer, tensors)
    for name in POSITION:
        setattr(at, name, getattr(state, name))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name the parameters and buffers of a model, each once.

    As graph.named_tensors, which this wing cannot import.

    Args:
        model: The model.

    Returns:
        The tensors themselves by name, parameters first; tied ones under their first name.
    """
    return dict(model.named_parameters()) | dict(model.named_buffers())


def check_same(file: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise UserError naming the first setting that differs.

    The warm-up of an earlier version did not depend on the number of epochs; its trainings go on with theirs.
    """
    earlier = "schedule" not in saved
    saved = {"schedule": "cosine"} | saved
    for key in asked:
        if saved.get(key) != asked[key] and not (earlier and key == "warmup_epochs" and key in saved):
            raise UserError(
                f"{file} was made with {key} = {saved.get(key)}, not {asked[key]}. "
                "Ask for the same, choose another folder, or remove the file to start again."
            )


def check_position(file: Path, state: State) -> None:
    """Raise FileError unless there is a row of the history for each epoch."""
    if state.epoch != len(state.history):
        raise FileError(
            f"{file} is damaged: it is in epoch {state.epoch + 1}, but has the history of {len(state.history)} epochs. "
            f"{State.remedy}"
        )


@torch.no_grad()
def restore(file: Path, what: str, saved: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Copy the tensors saved as "what.NAME" into `own`. Raises UserError if names, shapes or types differ."""
    saved = {name.removeprefix(f"{what}."): t for name, t in saved.items() if name.startswith(f"{what}.")}
    for name in sorted(own.keys() | saved.keys()):
        there, here = (describe_tensor(t[name]) if name in t else "absent" for t in (saved, own))
        if there != here:
            raise UserError(
                f"{file} is of another model: {name} is {there} there and {here} here. "
                "Give the model it was made with, or choose another folder."
            )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def describe_tensor(tensor: Tensor) -> str:
    """Return the shape and the type of a tensor as text, such as "(3, 3) float32"."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def restore_optimizer(file: Path, optimizer: Optimizer, saved: dict[str, Tensor]) -> None:
    """Restore the optimiser's state of each parameter, in its memory layout; FileError if a parameter is unknown."""
    state = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in saved.items():
        what, _, rest = name.partition(".")
        if what == "optimizer":
            index, _, key = rest.partition(".")
            like = parameters[int(index)] if index in map(str, range(len(parameters))) else None
            if like is None or tensor.shape not in (like.shape, ()):
                raise FileError(
                    f"{file} holds {shorten(name)} {tuple(tensor.shape)}, which fits none of the {len(parameters)} "
                    f"parameters that are trained. {State.remedy}"
                )
            # in another layout the last bit of later steps might differ
            value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor.clone()
            state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)


def describe_checkpoint(at: Training) -> str:
    """Say where the last good state is."""
    if at.folder is None or not (at.folder / NAME).exists():
        return "No checkpoint had been written; the model in memory may be unusable."
    return f"The last good state is kept in {at.folder / NAME}."
