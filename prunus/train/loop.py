"""The training loop, on one device or under torchrun; it can be killed, and resumes bit-equal on a CPU.

The randomness of a step (order, augmentation, dropout) depends on (seed, step) alone. So a checkpoint needs
no random states, and a resumed run equals the uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn

from prunus.data import own_randomness, reseed
from prunus.errors import TrainingError, UserError
from prunus.inputs import call, model_device, move
from prunus.metrics import Metric
from prunus.progress import Step, silent
from prunus.train import checkpoint
from prunus.train.along import Along
from prunus.train.checkpoint import Training
from prunus.train.contexts import (
    avoid_onednn_fault,
    channels_last,
    exchange,
    in_mode,
    swap_in,
)
from prunus.train.recipe import OPTIMIZERS, Recipe, learning_rate

SAVE_EVERY_S = 30.0


class Trainable(Protocol):
    """The part of a task that training uses; `tasks.Task` has all of it."""

    metric: Metric
    data: Any  # with the splits `train` and `val`

    def training_loss(self, output: Any, target: Tensor, recipe: Recipe) -> Tensor:
        """Return the loss that is minimised."""
        ...

    def distil(self, output: Any, teacher_output: Any, temperature: float, target: Any) -> Tensor:
        """Return how far an output is from the teacher's, where the targets count."""
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
    progress: Callable[..., AbstractContextManager[Step]] = silent,
    label: str = "training",
) -> list[dict[str, Any]]:
    """Train a model in place on task.data.train, and evaluate it on task.data.val after each epoch and at the end.

    Args:
        model: The model; it ends on the device that Accelerate chose, in its modes of before.
        task: The loss, the metric and the data.
        recipe: The settings.
        folder: A folder for a checkpoint, written every epoch and every 30 s; training continues from it.
        seed: The seed of the order, augmentation and dropout.
        teacher: A network whose answers are learned too, by recipe.distill_weight.
        along: The hooks of a method.
        progress: Shows the steps, such as `progress.bar`.
        label: The name of the stage, for `progress`.

    Returns:
        A row for each epoch: epoch, loss, lr, seconds, and the metric by its key. "epoch" is the number of epochs so
        far, in the last row perhaps a fraction.

    Raises:
        TrainingError: The loss or a tensor is NaN or infinite; the last good checkpoint stays.
        UserError: Nothing of the model is trained, or the checkpoint is of another training.
    """
    accelerator = Accelerator(mixed_precision="no")  # `make_objective` applies the recipe's precision
    along = along or Along()
    teacher = teacher if recipe.distill_weight else None
    train, steps = task.data.train, task.data.train.steps(recipe.batch_size)  # per epoch
    total = recipe.count_steps(steps)
    recipe = replace(recipe, epochs=total / max(1, steps))  # in whole steps
    show = progress if accelerator.is_main_process else silent
    with borrow(model, teacher, recipe, accelerator.device), show(label, total) as shown:
        settings = asdict(recipe) | {"seed": seed, "distilled": teacher is not None, "pictures": len(train)}
        at = begin(model, recipe, settings, folder, along)
        recipe = replace(
            recipe, warmup_epochs=at.settings["warmup_epochs"]
        )  # that of an earlier version stays
        shown(at.epoch * steps + at.batch)
        loss_of = make_objective(task, wrap(model, accelerator), teacher, recipe)
        saved_s = time.monotonic()
        while at.epoch < recipe.epochs and (at.batch or not along.finished):
            began_s = time.monotonic() - at.seconds
            batches = train.batches(recipe.batch_size, **next_batches(at, accelerator))
            for x, y in until_end(batches, at, steps, total):
                step = at.epoch * steps + at.batch
                lr = learning_rate(recipe, step / steps)
                reseed(seed, step, accelerator.process_index)
                loss = take_step(at, recipe, accelerator, lr, loss_of(x, y))
                along.after_step(at, step, lr)
                update_average(at, recipe, step)
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
        exchange(floating_tensors(model), at.average)
        share_buffers(model, accelerator)
    return at.history


def borrow(model: nn.Module, teacher: nn.Module | None, recipe: Recipe, device: torch.device) -> ExitStack:
    """Move both to the device, the model in training mode, the teacher in evaluation mode, until closed."""
    stack = ExitStack()
    stack.enter_context(own_randomness())
    stack.enter_context(in_mode(model.to(device), True))
    stack.enter_context(channels_last(model, recipe.channels_last))
    stack.enter_context(avoid_onednn_fault(model))
    if teacher is not None:
        stack.enter_context(in_mode(teacher.to(device), False))
    return stack


def begin(
    model: nn.Module, recipe: Recipe, settings: dict[str, Any], folder: Path | str | None, along: Along
) -> Training:
    """Start a training, or continue from its checkpoint."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UserError(
            f"there is nothing to train: no parameter of this {type(model).__name__} requires gradients; "
            "unfreeze some (parameter.requires_grad_())."
        )
    groups = [
        {"params": [p for p in trained if along.decays(p)], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if not along.decays(p)], "weight_decay": 0.0},
    ]
    optimizer = OPTIMIZERS[recipe.optimizer]([group for group in groups if group["params"]], recipe)
    average = {n: t.detach().clone() for n, t in floating_tensors(model).items()} if recipe.ema_decay else {}
    at = Training(model, optimizer, average, Path(folder) if folder else None, settings, along)
    checkpoint.load(at)
    return at


def wrap(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Wrap the model if there are several processes.

    Accelerate's mark on it is removed, because with it a second training of the model would not be wrapped.
    """
    runner = accelerator.prepare_model(model)
    vars(model).pop("_is_accelerate_prepared", None)
    return runner


def next_batches(at: Training, accelerator: Accelerator) -> dict[str, Any]:
    """The arguments of `batches` that give this process its next ones."""
    share = accelerator.process_index, accelerator.num_processes
    seed = at.settings["seed"]
    return {"seed": seed, "epoch": at.epoch, "start": at.batch, "augment": True, "share": share}


def make_objective(
    task: Trainable, model: nn.Module, teacher: nn.Module | None, recipe: Recipe
) -> Callable[[Any, Any], Tensor]:
    """Make the function from a batch (x, y) to the loss that is minimised."""
    device = model_device(model)

    def loss_of(x: Any, y: Any) -> Tensor:
        x, y = move((x, y), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            output = call(model, x)
            loss = task.training_loss(output, y, recipe)
            if teacher is None:
                return loss
            with torch.no_grad():
                answers = call(teacher, x)
            distilled = task.distil(output, answers, recipe.distill_temperature, y)
        return torch.lerp(loss, distilled, recipe.distill_weight)

    return loss_of


def take_step(at: Training, recipe: Recipe, accelerator: Accelerator, lr: float, loss: Tensor) -> float:
    """Take a step to lower the loss; returns its value. Raises TrainingError unless it is finite."""
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} in epoch {at.epoch + 1}, batch {at.batch + 1}. "
            f"{checkpoint.describe_checkpoint(at)} "
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


def floating_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters and buffers by name, of which a moving average is taken."""
    return {name: t for name, t in checkpoint.named_tensors(model).items() if t.is_floating_point()}


@torch.no_grad()
def update_average(at: Training, recipe: Recipe, step: int) -> None:
    """Move the average, if it is on, towards the model; faster at first, away from the initial weights."""
    decay = min(recipe.ema_decay, (1 + step) / (10 + step))
    tensors = floating_tensors(at.model) if at.average else {}
    for name, average in at.average.items():
        average.lerp_(tensors[name], 1 - decay)


def until_end(batches: Iterable[Any], at: Training, steps: int, total: int) -> Iterable[Any]:
    """The batches of this epoch that are still to be shown: all that are left, or those up to the last step."""
    left = 0 if at.along.finished else total - at.epoch * steps - at.batch
    return batches if left >= steps - at.batch else islice(batches, left)


def end_epoch(at: Training, task: Trainable, recipe: Recipe, steps: int) -> None:
    """Evaluate on val, with the average if it is on; add a row to the history and go to the next epoch."""
    with swap_in(floating_tensors(at.model), at.average), in_mode(at.model, False):
        metric = task.evaluate(at.model, task.data.val)[task.metric.key]
    lr = learning_rate(recipe, at.epoch + (at.batch - 1) / steps)  # the last step's
    shown = at.epoch + 1 if at.batch == steps else at.epoch + at.batch / steps
    row = {"epoch": shown, "loss": at.loss_sum / at.batch, "lr": lr, "seconds": at.seconds}
    at.history.append(row | {task.metric.key: metric})
    at.epoch, at.batch, at.loss_sum, at.seconds = at.epoch + 1, 0, 0.0, 0.0


def share_buffers(model: nn.Module, accelerator: Accelerator | PartialState) -> None:
    """Give all processes the buffers of the first, because each has seen another part of the last batch.

    Args:
        model: The model, the same in every process but for its buffers.
        accelerator: Accelerate's view of the processes.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
