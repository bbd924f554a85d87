"""A training's whole state in one file, checkpoint.safetensors, so that a kill at any moment leaves the last one whole.

Tensors: "model.*" (parameters and buffers), "average.*" (their moving average, if kept), "optimizer.N.*" (of the
N-th trained parameter). All else (position, history, the settings it belongs to) is JSON in the file's header.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.errors import FileError, TrainingError, UserError
from prunus.files import read_tensors, write_tensors

NAME = "checkpoint.safetensors"
POSITION = ("settings", "epoch", "batch", "loss_sum", "seconds", "history")


@dataclass
class Training:
    """Where a training stands. folder: where its checkpoint lies, if it has one; the fields below it are plain data."""

    model: nn.Module
    optimizer: Optimizer
    average: dict[str, Tensor]
    folder: Path | None
    settings: dict
    along: Any  # train.Along
    epoch: int = 0
    batch: int = 0  # the next one of this epoch
    loss_sum: float = 0.0  # over this epoch's batches
    seconds: float = 0.0  # spent on this epoch
    history: list[dict] = field(default_factory=list)


def save(at: Training) -> None:
    """Write everything atomically, if there is a folder for it.

    Raises TrainingError, and keeps the file there was, if a tensor holds NaN or infinity.
    """
    if at.folder is None:
        return
    tensors = {f"model.{name}": tensor for name, tensor in distinct(at.model).items()}
    tensors |= {f"average.{name}": tensor for name, tensor in at.average.items()}
    for index, values in at.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise TrainingError(f"{name} holds NaN or infinity in epoch {at.epoch + 1}. {kept(at)}")
    state = {name: getattr(at, name) for name in POSITION} | {"along": at.along.state()}
    header = {"state": json.dumps(state)}
    write_tensors(at.folder / NAME, tensors, header)


def load(at: Training) -> None:
    """Go to where the checkpoint in at.folder stands, if there is one.

    Raises UserError if it was made with other settings or for another model, FileError if it is damaged.
    """
    file = at.folder and at.folder / NAME
    if file is None or not file.exists():
        return
    tensors = read_tensors(file)
    with safe_open(file, "pt") as opened:
        state = json.loads((opened.metadata() or {}).get("state", "{}"))
    if not all(name in state for name in (*POSITION, "along")):
        raise FileError(f"{file} is no checkpoint of a training; remove it.")
    check_same(file, state["settings"], at.settings)
    at.along.restore(state["along"])
    restore(file, "model", tensors, distinct(at.model))
    restore(file, "average", tensors, at.average)
    fill_optimizer(at.optimizer, tensors)
    for name in POSITION:
        setattr(at, name, state[name])


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def check_same(file: Path, saved: dict, asked: dict) -> None:
    """Raise UserError naming the first setting that differs."""
    for key in asked:
        if saved.get(key) != asked[key]:
            raise UserError(
                f"{file} was made with {key} = {saved.get(key)}, not {asked[key]}. "
                "Ask for the same, choose another folder, or remove the file to begin anew."
            )


@torch.no_grad()
def restore(file: Path, what: str, saved: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Copy the tensors saved under "what." into `own`, which must have the same names and shapes."""
    saved = {name.removeprefix(f"{what}."): t for name, t in saved.items() if name.startswith(f"{what}.")}
    for name in sorted(own.keys() | saved.keys()):
        there, here = (tuple(t[name].shape) if name in t else "absent" for t in (saved, own))
        if there != here:
            raise UserError(f"{file} is of another model: {name} is {there} there and {here} here.")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def fill_optimizer(optimizer: Optimizer, saved: dict[str, Tensor]) -> None:
    """Restore what the optimiser remembers of each parameter, laid out in memory like the parameter."""
    state = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in saved.items():
        what, _, rest = name.partition(".")
        if what == "optimizer":
            index, _, key = rest.partition(".")
            like = parameters[int(index)]
            # in another layout the last bit of what follows might differ
            value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor.clone()
            state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)


def kept(at: Training) -> str:
    """Where the last good state is, in words."""
    if at.folder is None or not (at.folder / NAME).exists():
        return "No checkpoint had been written; the model in memory may be spoilt."
    return f"The last good state is kept in {at.folder / NAME}."
