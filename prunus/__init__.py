"""Prunus makes PyTorch networks smaller and faster by pruning, and proves every cut.

The names in __init__.pyi are imported when they are used.
"""

from importlib import import_module
from typing import Any

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["load"]


def load(folder: Any, model: Any = None) -> Any:
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
    if model is None:  # brings the learning wing along, for which a user who only runs a model need not wait
        return import_module("prunus.run").load_run(folder)
    return import_module("prunus.export").load(folder, model)
