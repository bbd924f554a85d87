"""Prunus makes PyTorch networks smaller and faster by pruning, and proves every cut."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from prunus import export
from prunus import latency as latency
from prunus import scores as scores
from prunus import sparse as sparse
from prunus.export import load_masks as load_masks
from prunus.export import save as save
from prunus.graph import Graph as Graph
from prunus.graph import part as part
from prunus.graph import rule as rule
from prunus.graph import trace as trace
from prunus.latency import latency_ms as latency_ms
from prunus.selection import Budget as Budget
from prunus.selection import Sparsity as Sparsity
from prunus.selection import macs as macs
from prunus.selection import memory_mb as memory_mb
from prunus.selection import params as params
from prunus.selection import plan as plan
from prunus.selection import select as select
from prunus.surgery import Proof as Proof
from prunus.surgery import carry_over as carry_over
from prunus.surgery import crop as crop
from prunus.surgery import mask as mask
from prunus.surgery import shrink as shrink
from prunus.surgery import verify as verify

if TYPE_CHECKING:
    from prunus import testing as testing
    from prunus.run import Saved
    from prunus.run import prune as prune

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "Graph",
    "Proof",
    "Sparsity",
    "carry_over",
    "crop",
    "latency",
    "latency_ms",
    "load",
    "load_masks",
    "macs",
    "mask",
    "memory_mb",
    "params",
    "part",
    "plan",
    "prune",
    "rule",
    "save",
    "scores",
    "select",
    "shrink",
    "sparse",
    "testing",
    "trace",
    "verify",
]


@overload
def load(folder: str | Path) -> "Saved":
    """Load a finished run."""


@overload
def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """Load a model that `save` wrote."""


def load(folder: str | Path, model: nn.Module | None = None) -> "Saved | nn.Module":
    """Load a finished run by its folder alone, or a model that `save` wrote.

    Args:
        folder: The folder of a run, or the one that `save` wrote to.
        model: The original class at its original size, with any weights; untouched. None: the folder is a run's, which
            says how its model is built.

    Returns:
        Without `model`, the run: its smaller model, class names, and how it reads an image (`prunus.run.Saved`). With
        it, the smaller model alone, on the device of `model`.

    Raises:
        UserError: The folder holds no finished run, or one whose model cannot be built from its name.
        FileError: `model` is not the class that was pruned, or a file is missing or damaged.
    """
    if model is not None:
        return export.load(folder, model)
    from prunus.run import load_run  # brings the learning wing, see below

    return load_run(folder)


def __getattr__(name: str) -> Any:
    # these bring the learning wing with them, for which a user who only shrinks need not wait
    if name == "prune":
        from prunus.run import prune as prune

        return prune
    if name == "testing":
        return importlib.import_module("prunus.testing")
    raise AttributeError(f"module 'prunus' has no attribute {name!r}")
