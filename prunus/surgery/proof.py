"""The proof that a small model computes what the original computes with the removed units at zero."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from prunus.errors import PruningError
from prunus.graph import Graph, Keep, make_skeleton, skeleton, tracer
from prunus.surgery.copies import checked_tensors, clone, effective, resized
from prunus.surgery.slicing import Places, masked, sliced

# Relative errors allowed. Lower precisions are for devices and models that cannot compute in double.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
SMALL_MODEL = 1_000_000  # parameters


@dataclass(frozen=True)
class Proof:
    """How far the small model is from the masked original, relative to the largest output."""

    max_abs_error: float
    tolerance: float
    seconds: float

    @property
    def holds(self) -> bool:
        return self.max_abs_error <= self.tolerance


def prove(model: nn.Module, graph: Graph, keep: Keep, small: nn.Module) -> Proof:
    """`verify`, but raises PruningError naming the axes at fault if the two do not agree."""
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
    """Which axes fail alone, and what couples them."""

    def fails(name: str) -> bool:
        try:
            return not verify(model, graph, {name: keep[name]}).holds
        except PruningError:
            return True

    guilty = list(filter(fails, keep))
    if not guilty:
        return "Each axis alone is right, together they fail; freeze some of them (freeze=[...])."
    names = ", ".join(guilty[:3])
    return f"It fails on {names} alone; freeze it (freeze=[...]) and go on without it.\n{graph.explain(guilty[0])}"


@torch.inference_mode(False)  # see graph.trace
def verify(model: nn.Module, graph: Graph, keep: Keep, small: nn.Module | None = None) -> Proof:
    """Compare the small model with the original in which the units that go are zero (see the top of this file).

    small: also checked to hold exactly the kept weights of `model`; None tries the surgery alone.
    """
    start = time.perf_counter()
    keep = graph.check_keep(keep)
    tensors = checked_tensors(model, graph)
    if small is not None:
        _check_weights(graph, keep, tensors, effective(small))
    # in a small model the few units left may all be dead for one input, and a dead unit hides its faults
    rounds = 3 if sum(map(torch.Tensor.numel, tensors.values())) < SMALL_MODEL else 1
    cause: Exception | None = None
    for dtype, tolerance in TOLERANCES.items():
        try:
            error = max(_difference(model, graph, keep, tensors, dtype, seed) for seed in range(rounds))
            return Proof(error, tolerance, time.perf_counter() - start)
        except Exception as failure:  # no such precision on this device, or a dtype written into the forward
            cause = failure
    raise PruningError(f"the two models cannot be compared, for one does not run: {cause}") from cause


def _check_weights(
    graph: Graph, keep: Keep, tensors: dict[str, torch.Tensor], small: dict[str, torch.Tensor]
) -> None:
    places: Places = {}
    for name, tensor in tensors.items():
        expected = sliced(tensor, graph.layouts[name], keep, places)
        parametrised = not isinstance(tensor, nn.Parameter) and name in graph.parameters
        same = torch.allclose if parametrised else torch.equal
        if (
            name not in small
            or small[name].shape != expected.shape
            or not same(small[name].to(expected.device), expected)
        ):
            raise PruningError(f"{name} of the small model does not hold the kept weights of the original.")


def _difference(
    model: nn.Module,
    graph: Graph,
    keep: Keep,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    seed: int,
) -> float:
    """Largest difference of outputs over the largest output, for weights and inputs drawn with `seed`."""
    generator = torch.Generator().manual_seed(seed)
    shaken = {name: _shake(tensor, dtype, generator) for name, tensor in tensors.items()}
    if seed:  # other rounds: other units alive
        signs = torch.randint(2, (len(shaken),), generator=generator).mul(2).sub(1).tolist()
        shaken = {
            name: tensor * sign if name in graph.parameters else tensor
            for (name, tensor), sign in zip(shaken.items(), signs, strict=True)
        }
    plain = make_skeleton(model, real=True)
    reference = clone(plain, masked(shaken, graph, keep)).eval()
    small = resized(plain, graph, keep, shaken).eval()
    device = next(iter(tensors.values())).device
    example = tree_map_only(torch.Tensor, lambda t: _random_like(t, dtype, device, generator), graph.example)
    with skeleton.quiet_forward():
        own = tree_map_only(torch.Tensor, torch.clone, example)  # the forward may write to it
        got = tracer.output_tensors(skeleton.call(small, own))
    expected = tracer.output_tensors(
        tracer.run(reference, example, tracer.copy_layouts(graph.layouts), keep)[1]
    )
    if not any(tensor.isfinite().any() for tensor in expected):
        return float("inf")  # no number, no proof
    return max(map(_relative_error, got, expected))


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value; infinite where shapes or infinities differ."""
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


def _shake(tensor: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Weights near the user's own, but no two alike: w * exp(0.1 n) + 0.01 n', n and n' standard normal."""
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
