"""The proof that a small model computes the same as the original with the removed units at zero."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from prunus.errors import PruningError
from prunus.graph import Graph, Keep, make_skeleton, output_tensors, parametrised, skeleton, tracer
from prunus.surgery.copies import checked_tensors, clone, effective_tensors, resize
from prunus.surgery.slicing import Places, mask_tensors, slice_tensor

# Allowed relative errors. Lower precisions are for devices and models that cannot compute in double.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
SMALL_MODEL = 1_000_000  # parameters


@dataclass(frozen=True)
class Proof:
    """The result of a proof.

    Args:
        max_abs_error: Largest difference between small model and masked original, relative to the largest output.
        tolerance: The allowed error, which depends on the precision that was possible.
        seconds: Duration of the proof.
    """

    max_abs_error: float
    tolerance: float
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_abs_error <= self.tolerance


def prove(model: nn.Module, graph: Graph, keep: Keep, small: nn.Module) -> Proof:
    """Verify a small model, and name the axes at fault if it differs from the masked original.

    Args:
        model: The traced model.
        graph: Its graph.
        keep: axis -> indices that stayed.
        small: The shrunk model.

    Returns:
        The proof, which holds.

    Raises:
        FileError: `model` is not the model that was traced.
        PruningError: The two differ or cannot be compared.
    """
    try:
        proof = verify(model, graph, keep, small)
    except PruningError as error:
        raise PruningError(f"{error} {_blame(model, graph, keep)}") from error
    if not proof.holds:
        raise PruningError(
            f"the small model differs from the masked original by {proof.max_abs_error:.2g} "
            f"(allowed {proof.tolerance:.0e}); nothing was changed. {_blame(model, graph, keep)}"
        )
    return proof


def _blame(model: nn.Module, graph: Graph, keep: Keep) -> str:
    """A sentence that names the axes which fail alone, with an explanation of the first."""

    def fails(name: str) -> bool:
        try:
            return not verify(model, graph, {name: keep[name]}).holds
        except PruningError:
            return True

    failing = list(filter(fails, keep))
    if not failing:
        return "Each axis alone passes, together they fail; freeze some of them (freeze=[...])."
    names = ", ".join(failing[:3])
    return f"It fails on {names} alone; freeze it (freeze=[...]) and prune the rest.\n{graph.explain(failing[0])}"


@torch.inference_mode(False)  # see graph.trace
def verify(model: nn.Module, graph: Graph, keep: Keep, small: nn.Module | None = None) -> Proof:
    """Compare a small model with the original whose removed units are zero; see `prunus/surgery/apply.py`.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        keep: axis -> indices that stay.
        small: The shrunk model, also checked to hold exactly the kept weights of `model`; None verifies only that
            shrinking `model` to `keep` is correct.

    Returns:
        The proof, which may not hold.

    Raises:
        FileError: `model` is not the model that was traced.
        PruningError: `small` holds other weights, or one of the two models does not run.
        UserError: `keep` does not fit the graph.
    """
    start = time.perf_counter()
    keep = graph.check_keep(keep)
    tensors = checked_tensors(model, graph)
    if small is not None:
        _check_weights(graph, keep, tensors, effective_tensors(small))
    # in a small model the few remaining units may all be zero for one input, and a unit at zero hides its errors
    rounds = 3 if sum(map(torch.Tensor.numel, tensors.values())) < SMALL_MODEL else 1
    cause: Exception | None = None
    for dtype, tolerance in TOLERANCES.items():
        try:
            error = max(_difference(model, graph, keep, tensors, dtype, seed) for seed in range(rounds))
            return Proof(error, tolerance, time.perf_counter() - start)
        except Exception as failure:  # the device lacks this precision, or the forward pass fixes a dtype
            cause = failure
    raise PruningError(
        f"the small model and the original cannot be compared, because one does not run: {cause}"
    ) from cause


def _check_weights(
    graph: Graph, keep: Keep, tensors: dict[str, torch.Tensor], small: dict[str, torch.Tensor]
) -> None:
    places: Places = {}
    for name, tensor in tensors.items():
        expected = slice_tensor(tensor, graph.layouts[name], keep, places)
        computed = not isinstance(tensor, nn.Parameter) and name in graph.parameters
        same = parametrised.same_value if computed else torch.equal
        if (
            name not in small
            or small[name].shape != expected.shape
            or not same(small[name].to(expected.device), expected)
        ):
            raise PruningError(
                f"{name} of the small model does not hold the kept weights of the original; verify it before it is "
                "trained, with the keep it was made with."
            )


def _difference(
    model: nn.Module,
    graph: Graph,
    keep: Keep,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    seed: int,
) -> float:
    """Largest difference of outputs over the largest output, for weights and inputs sampled with `seed`."""
    generator = torch.Generator().manual_seed(seed)
    perturbed = {name: _perturb(tensor, dtype, generator) for name, tensor in tensors.items()}
    if seed:  # random signs, so that other units are above zero in other rounds
        signs = torch.randint(2, (len(perturbed),), generator=generator).mul(2).sub(1).tolist()
        perturbed = {
            name: tensor * sign if name in graph.parameters else tensor
            for (name, tensor), sign in zip(perturbed.items(), signs, strict=True)
        }
    plain = make_skeleton(model, real=True)
    reference = clone(plain, mask_tensors(perturbed, graph, keep)).eval()
    small = resize(plain, graph, keep, perturbed).eval()
    device = next(iter(tensors.values())).device
    example = tree_map_only(torch.Tensor, lambda t: _random_like(t, dtype, device, generator), graph.example)
    with skeleton.quiet_forward():
        own = tree_map_only(torch.Tensor, torch.clone, example)  # the forward pass may write to it
        got = output_tensors(skeleton.call(small, own))
    expected = output_tensors(tracer.run(reference, example, tracer.copy_layouts(graph.layouts), keep)[1])
    if not any(tensor.isfinite().any() for tensor in expected):
        return float("inf")  # nothing finite to compare, so nothing is proved
    return max(map(_relative_error, got, expected))


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value; infinite if shapes, infinities or NaN differ."""
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.double(), expected.double()
    finite = expected.isfinite()
    same_places = torch.equal(got.isfinite(), finite)
    if not same_places or not torch.equal(got[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = max(expected[finite].abs().max().item(), 1e-12)
    return (got[finite] - expected[finite]).abs().max().item() / scale


def _perturb(tensor: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Weights near the user's own, but all different: w * exp(0.1 n) + 0.01 |n'|, n and n' standard normal."""
    if not tensor.is_floating_point():
        return tensor.detach()
    first, second = (torch.randn(tensor.shape, generator=generator, dtype=dtype) for _ in range(2))
    factor, offset = (0.1 * first).exp().to(tensor.device), (0.01 * second.abs()).to(tensor.device)
    return tensor.detach().to(dtype) * factor + offset


def _random_like(
    tensor: torch.Tensor, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Any:
    if not tensor.is_floating_point():
        return tensor.to(device)
    return torch.randn(tensor.shape, generator=generator, dtype=dtype).to(device)
