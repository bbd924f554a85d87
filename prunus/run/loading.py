"""Models of a run: read from their files, and compared with those in memory."""

from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.errors import PruningError
from prunus.files import read_json, read_tensors
from prunus.run.records import check_files, file_of
from prunus.train import checkpoint

BASE = "base.safetensors"


def load_into(model: nn.Module, file: Path) -> nn.Module:
    """Return `model` with the weights and buffers in `file`; FileError or UserError if they do not fit."""
    saved = {f"model.{name}": tensor for name, tensor in read_tensors(file).items()}
    checkpoint.restore(file, "model", saved, checkpoint.named_tensors(model))
    return model


def load_base(folder: Path, model: nn.Module) -> nn.Module:
    """Load the weights of a run's base.

    Args:
        folder: The run's folder.
        model: The original model, which gets them.

    Returns:
        The model.

    Raises:
        FileError: The file is missing, or has been changed or damaged since the run wrote it.
    """
    if (of_base := file_of(folder, "base")).exists():
        check_files(folder, {"base": read_json(of_base)})
    return load_into(model, folder / BASE)


def check_same(model: nn.Module, loaded: nn.Module) -> None:
    """Raise PruningError unless the saved model, loaded again, equals the one in memory to the bit."""
    ours, theirs = checkpoint.named_tensors(model), checkpoint.named_tensors(loaded)
    same = ours.keys() & theirs.keys()
    differing = [name for name in same if not torch.equal(ours[name].cpu(), theirs[name].cpu())]
    differing += sorted(ours.keys() ^ theirs.keys())
    if differing:
        raise PruningError(
            f"the saved model differs from the one in memory in {', '.join(differing[:3])}; check the disk, then "
            "repeat the run with --resume."
        )


def check_same_masks(masks: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    """Raise PruningError unless the saved masks, loaded again, equal those in memory."""
    differing = sorted(masks.keys() ^ loaded.keys())
    differing += [
        name for name in masks.keys() & loaded.keys() if not torch.equal(masks[name].cpu(), loaded[name])
    ]
    if differing:
        raise PruningError(
            f"the saved masks differ from those in memory in {', '.join(differing[:3])}; check the disk, then repeat "
            "the run with --resume."
        )
