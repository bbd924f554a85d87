"""Callbacks that prune while transformers' Trainer or Lightning trains; each only calls `Gradual.update`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from prunus.errors import UserError, one_line
from prunus.export import save
from prunus.run.gradual import Gradual

PRUNED = "pruned"  # the folder in a checkpoint of the Trainer that holds what `save` writes


def trainer_callback(gradual: Gradual) -> Any:
    """Make a callback for transformers' Trainer that prunes its model at the planned steps.

    The Trainer's model, optimiser and scheduler stay the objects that they are. Every checkpoint gets a folder
    `pruned`, which `prunus.load` opens, because transformers cannot open a model whose sizes its config does not say.
    To resume, first cut the model to the sizes of the checkpoint:
    `gradual.restore(model, prunus.export.load_keep(checkpoint / "pruned"), step)`.

    Args:
        gradual: The plan.

    Returns:
        A transformers.TrainerCallback, for `Trainer(callbacks=[...])`.

    Raises:
        UserError: transformers is not installed. When training begins: it runs in several processes or by DeepSpeed, or
            loads the best of its checkpoints at the end, which may be of another size. After a cut: transformers would
            not save a model of such sizes; the model is cut already, so training has to begin again with another plan.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("trainer_callback needs transformers; pip install 'prunus[hf]'.")
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import TrainerCallback

    class Pruning(TrainerCallback):
        """Prunes the Trainer's model by a plan."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            if args.world_size > 1 or args.deepspeed:
                raise UserError(
                    "trainer_callback prunes a model in one process, without DeepSpeed, because others hold copies of "
                    "its old sizes; train with one process, or prune between two trainings."
                )
            if args.load_best_model_at_end:
                raise UserError(
                    "trainer_callback does not go with load_best_model_at_end: the best checkpoint may have other "
                    "sizes than the model at the end. Leave it out, and open the checkpoint's folder "
                    f"{PRUNED!r} with prunus.load."
                )
            gradual.begin(held["model"])

        def on_step_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            optimizer = held["optimizer"]
            inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
            if gradual.update(held["model"], state.global_step, inner) is not None:
                _check_config(held["model"])

        def on_save(self, args: Any, state: Any, control: Any, **held: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / PRUNED
            save(folder, held["model"], gradual.keep, gradual.begin(held["model"]))

    return Pruning()


def _check_config(model: nn.Module) -> None:
    """Raise UserError if transformers would not save a model of these sizes; it would notice only when it saves."""
    validate = getattr(getattr(model, "config", None), "validate", None)
    if validate is None:
        return
    try:
        validate()
    except Exception as error:  # whatever a config raises
        raise UserError(
            f"the Trainer could not save the model that this cut made: {one_line(error)} The model is cut already, so "
            "begin again, and let the selection of the Gradual keep whole what the config cannot say, such as with "
            'freeze=["width"].'
        ) from error


def lightning_callback(gradual: Gradual, network: str = "") -> Any:
    """Make a callback for Lightning that prunes a network at the planned steps.

    Args:
        gradual: The plan.
        network: The name of the LightningModule's attribute that holds the network, such as "model". With "" the
            LightningModule itself is pruned, by its own forward; give a name where there is one.

    Returns:
        A lightning.pytorch.Callback, for `Trainer(callbacks=[...])`. Its state in a checkpoint is {"keep", "step"};
        `gradual.restore` takes them to cut a network to the checkpoint's sizes before it is loaded.

    Raises:
        UserError: Lightning is not installed. When training begins: it runs in several processes, or has several
            optimisers.
    """
    if importlib.util.find_spec("lightning") is None:
        raise UserError("lightning_callback needs Lightning; pip install lightning.")
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]

    def network_of(module: nn.Module) -> nn.Module:
        return module.get_submodule(network)

    class Pruning(Callback):  # pyright: ignore[reportUntypedBaseClass]
        """Prunes the network of a LightningModule by a plan."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.world_size > 1 or len(trainer.optimizers) > 1:
                raise UserError(
                    f"lightning_callback prunes in one process with one optimiser, but there are {trainer.world_size} "
                    f"and {len(trainer.optimizers)}; call gradual.update in your training_step instead."
                )
            gradual.begin(network_of(pl_module))

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            gradual.update(network_of(pl_module), trainer.global_step, *trainer.optimizers)

        @property
        def state_key(self) -> str:
            return "prunus"

        def state_dict(self) -> dict[str, Any]:
            return {"keep": gradual.keep, "step": gradual.cuts[-1].step if gradual.cuts else 0}

    return Pruning()
