"""Prunus makes PyTorch networks smaller and faster by pruning, and proves every cut."""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(
    __name__, __file__
)  # the names in __init__.pyi, when used
