"""The implementation by which the experts of a mixture are computed in a trace.

Models of transformers compute their experts in one of several ways, which give the same result. `grouped_mm`, the usual
one, sorts and counts the numbers of the experts that a router has picked, and `eager` asks the data which of them there
are, so that neither lets their number shrink. `batched_mm` only picks weights by these numbers. Source: ours.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from prunus.graph.modules import list_modules

PICKING, USUAL = "batched_mm", "grouped_mm"


def choose_experts(bare: nn.Module, implementation: str) -> bool:
    """Let the mixtures of a skeleton compute their experts by an implementation of transformers, in place.

    Args:
        bare: The skeleton, whose configs are its own copies. A model that cannot choose stays as it is.
        implementation: The name of the implementation.

    Returns:
        Whether some mixture had another one before.
    """
    before = _implementations(bare)
    for _, module in list_modules(bare):
        choose = getattr(module, "set_experts_implementation", None)  # of transformers, from version 5 on
        if callable(choose):
            try:
                choose(implementation)
            except Exception:  # this model knows no such implementation, or keeps to its own
                continue
    return _implementations(bare) != before


def _implementations(bare: nn.Module) -> list[Any]:
    """What the config of each module says about its experts; None for a module without."""
    configs = (vars(module).get("config") for _, module in list_modules(bare))
    return [getattr(config, "_experts_implementation", None) for config in configs]
