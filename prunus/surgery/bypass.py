"""An original that passes by the blocks which a keep leaves out, for a proof to compare the small model with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from prunus.errors import PruningError
from prunus.graph import Block, given_argument, seeded
from prunus.surgery.skipped import Skip, Skipped

# As a share of the input's largest number; the numbers of a branch that is not zero are about as large as that one.
ROUNDING = 1e-3


def bypass(model: nn.Module, block: Block) -> None:
    """Let a block of a bare model return its input (a branch: zeros), in place, as if its branch were zero.

    At each call the block is run with zeros in the place of its parameters, to see whether it really returns that. A
    block that ends with a norm is not run, because skipping it leaves out the norm as well.

    Args:
        model: A bare copy of the original.
        block: The block.
    """
    module = model.get_submodule(block.module)
    skip, own = Skip.of(block), module.forward
    stands_in = Skipped(skip, module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not block.ended:
            given = given_argument(skip.argument, args, kwargs)
            module.forward = own
            try:
                with _disable_current_modes(), torch.no_grad(), seeded(given.device):
                    copies = tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
                    result = torch.func.functional_call(module, _zeros(module, given), *copies)
                    result = result if skip.returns is None else result[skip.place]
                    wanted = torch.zeros_like(given) if skip.branch else given
                    same = torch.allclose(result, wanted, rtol=0, atol=ROUNDING * given.abs().max().item())
            finally:  # a proof tries again on other inputs if the block fails on these
                module.forward = forward
            if not same:
                what = "zeros" if skip.branch else "its input"
                raise PruningError(
                    f"{block.module} cannot be skipped: with all its parameters at zero it does not return {what}."
                )
        return stands_in(*args, **kwargs)

    module.forward = forward


def _zeros(module: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Zeros for the parameters of a module, of the type of a tensor if they are floating-point numbers."""
    return {
        name: torch.zeros(
            parameter.shape,
            dtype=like.dtype if parameter.is_floating_point() else parameter.dtype,
            device=like.device,
        )
        for name, parameter in module.named_parameters()
    }
