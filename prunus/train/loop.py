"""Training: one visible loop, on one device or under torchrun, that can be killed and goes on bit-equal on a CPU.

A step's randomness (order, augmentation, dropout) is drawn from (seed, step) alone. So a checkpoint needs no
random states, and a resumed run is the uninterrupted one.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn

from prunus.errors import TrainingError, UserError
from prunus.metrics import Metric
from prunus.progress import silent
from prunus.train import checkpoint
from prunus.train.along import Along
from prunus.train.checkpoint import Training
from prunus.train.contexts import channels_last, exchange, in_bounds, in_mode, own_randomness, reseed, swapped
from prunus.train.recipe import OPTIMIZERS, Recipe, learning_rate

SAVE_EVERY_S = 30.0


class Trainable(Protocol):
    """What a training knows of a task; see `tasks.Task`, which has all of it."""

    metric: Metric
    data: Any  # with the splits `train` and `val`

    def training_loss(self, output: Any, target: Tensor, recipe: Recipe) -> Tensor:
        """Return the loss that is minimised."""
        ...

    def distil(self, output: Any, teacher_output: Any, temperature: float) -> Tensor:
        """Return how far an output is from the teacher's."""
        ...

    def evaluate(self, model: nn.Module, split: Any) -> dict[str, float]:
        """Return the metric, and more, on a split."""
        ...


def fit(
    model: nn.Module,
    task: Trainable,
    recipe: Recipe,
    *,
    folder: Path | str | None = None,
    seed: int = 0,
    teacher: nn.Module | None = None,
    along: Along | None = None,
    progress=silent,
    label: str = "training",
) -> list[dict]:
    """Train `model` in place on task.data.train; a row per epoch: epoch, loss, lr, seconds, the metric on val.

    folder: a checkpoint is kept there, every epoch and every half minute, and gone on from if there is one.
    teacher: gives the answers recipe.distill_weight asks for. along: what a method does beside the training.
    The model ends on the device Accelerate chose; modes and global random states are put back.
    Raises TrainingError if the loss is NaN or infinite: the last good checkpoint stays.
    """
    accelerator = Accelerator(mixed_precision="no")  # the recipe's precision is applied in `objective`
    along = along or Along()
    teacher = teacher if recipe.distill_weight else None
    train, steps = task.data.train, task.data.train.steps(recipe.batch_size)  # of an epoch
    show = progress if accelerator.is_main_process else silent
    with borrowed(model, teacher, recipe, accelerator.device), show(label, recipe.epochs * steps) as shown:
        settings = asdict(recipe) | {"seed": seed, "distilled": teacher is not None, "pictures": len(train)}
        at = begin(model, recipe, settings, folder, along)
        shown(at.epoch * steps + at.batch)
        loss_of = objective(task, prepared(model, accelerator), teacher, recipe)
        saved_s = time.monotonic()
        while at.epoch < recipe.epochs and not along.finished:
            began_s = time.monotonic() - at.seconds
            for x, y in train.batches(recipe.batch_size, **order(at, accelerator)):
                step = at.epoch * steps + at.batch
                lr = learning_rate(recipe, step / steps)
                reseed(seed, step, accelerator.process_index)
                loss = take_step(at, recipe, accelerator, lr, loss_of(x, y))
                along.after_step(at, step, lr)
                follow(at, recipe, step)
                at.batch, at.loss_sum = at.batch + 1, at.loss_sum + loss
                at.seconds = time.monotonic() - began_s
                shown(1, f"epoch {at.epoch + 1}, loss {loss:.3f}")
                if accelerator.is_main_process and time.monotonic() - saved_s > SAVE_EVERY_S:
                    checkpoint.save(at)
                    saved_s = time.monotonic()
                if along.finished:
                    break
            end_epoch(at, task, recipe, steps)
            if accelerator.is_main_process:
                checkpoint.save(at)
        exchange(averaged(model), at.average)
        share_buffers(model, accelerator)
    return at.history


def borrowed(model: nn.Module, teacher: nn.Module | None, recipe: Recipe, device: torch.device) -> ExitStack:
    """`model` on the device in training mode, `teacher` in evaluation mode, random states to be set at will."""
    stack = ExitStack()
    stack.enter_context(own_randomness())
    stack.enter_context(in_mode(model.to(device), True))
    stack.enter_context(channels_last(model, recipe.channels_last))
    stack.enter_context(in_bounds(model))
    if teacher is not None:
        stack.enter_context(in_mode(teacher.to(device), False))
    return stack


def begin(
    model: nn.Module, recipe: Recipe, settings: dict, folder: Path | str | None, along: Along
) -> Training:
    """The start of a training, or where its checkpoint stands."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UserError("no parameter of the model requires gradients: there is nothing to train.")
    groups = [
        {"params": [p for p in trained if along.decays(p)], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if not along.decays(p)], "weight_decay": 0.0},
    ]
    optimizer = OPTIMIZERS[recipe.optimizer]([group for group in groups if group["params"]], recipe)
    average = {n: t.detach().clone() for n, t in averaged(model).items()} if recipe.ema_decay else {}
    at = Training(model, optimizer, average, Path(folder) if folder else None, settings, along)
    checkpoint.load(at)
    return at


def prepared(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """`model`, wrapped if there are several processes.

    Accelerate's mark on it is taken off: with it, a second training of the model would go unwrapped.
    """
    runner = accelerator.prepare_model(model)
    vars(model).pop("_is_accelerate_prepared", None)
    return runner


def order(at: Training, accelerator: Accelerator) -> dict:
    """Which batches are next, in this process."""
    share = accelerator.process_index, accelerator.num_processes
    seed = at.settings["seed"]
    return {"seed": seed, "epoch": at.epoch, "start": at.batch, "augment": True, "share": share}


def objective(task: Trainable, model: nn.Module, teacher: nn.Module | None, recipe: Recipe) -> Callable:
    """A function from a batch (x, y) to the loss to go down on."""
    device = next(model.parameters()).device

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            output = model(x)
            loss = task.training_loss(output, y, recipe)
            if teacher is None:
                return loss
            with torch.no_grad():
                answers = teacher(x)
            distilled = task.distil(output, answers, recipe.distill_temperature)
        return torch.lerp(loss, distilled, recipe.distill_weight)

    return loss_of


def take_step(at: Training, recipe: Recipe, accelerator: Accelerator, lr: float, loss: Tensor) -> float:
    """Go down on `loss`, of which the value is returned. Raises TrainingError if it is NaN or infinite."""
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} in epoch {at.epoch + 1}, batch {at.batch + 1}. {checkpoint.kept(at)} "
            f"A learning rate below {recipe.lr}, clip_norm or a longer warm-up may help."
        )
    for group in at.optimizer.param_groups:
        group["lr"] = lr
    at.optimizer.zero_grad()
    accelerator.backward(loss)
    if recipe.clip_norm is not None:
        accelerator.clip_grad_norm_(at.model.parameters(), recipe.clip_norm)
    at.optimizer.step()
    return value


def averaged(model: nn.Module) -> dict[str, Tensor]:
    """What a moving average of a model is taken of: parameters and the buffers that are fractions."""
    return {name: t for name, t in checkpoint.distinct(model).items() if t.is_floating_point()}


@torch.no_grad()
def follow(at: Training, recipe: Recipe, step: int) -> None:
    """Move the average, if kept, towards the model; faster in the first steps, when the average is all start."""
    decay = min(recipe.ema_decay, (1 + step) / (10 + step))
    tensors = averaged(at.model) if at.average else {}
    for name, average in at.average.items():
        average.lerp_(tensors[name], 1 - decay)


def end_epoch(at: Training, task: Trainable, recipe: Recipe, steps: int) -> None:
    """Measure on val, with the average if kept; note the epoch's row and stand before the next one."""
    with swapped(averaged(at.model), at.average):
        metric = task.evaluate(at.model, task.data.val)[task.metric.key]
    lr = learning_rate(recipe, at.epoch + (at.batch - 1) / steps)  # the last step's
    row = {"epoch": at.epoch + 1, "loss": at.loss_sum / at.batch, "lr": lr, "seconds": at.seconds}
    at.history.append(row | {task.metric.key: metric})
    at.epoch, at.batch, at.loss_sum, at.seconds = at.epoch + 1, 0, 0.0, 0.0


def share_buffers(model: nn.Module, accelerator: Accelerator | PartialState) -> None:
    """Give all processes the first one's buffers: each has seen its own part of the last batch."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
