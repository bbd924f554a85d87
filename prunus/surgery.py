"""Keep applied: the same indices as zeros (mask), as smaller weights for one call (crop), or for real (shrink).

Every shrink is proved. The original, with the units that go set to zero in all its weights, and the small
model are run side by side in double precision, on weights shaken a little so that fresh ones and zeros
cannot hide a wrong index; their outputs must agree. Operators that mix units (layer norm, softmax, means
over a pruned axis) take their statistics over the units that are kept, in both. Source: ours.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from prunus.errors import PruningError, UserError, unknown
from prunus.graph import Graph, Keep, axes, set_attributes, skeleton, tracer
from prunus.weights import checked_tensors, clone, cut, differences, effective, masked, resized, sliced

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


def mask(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """A copy of `model`, of the same shapes, with zeros in all weights at the units that go."""
    keep, tensors = graph.checked(keep), checked_tensors(model, graph)
    return clone(model, masked(tensors, graph, keep))


def crop(
    model: nn.Module, graph: Graph, keep: Keep, *args: Any, weights: Mapping | None = None, **kwargs: Any
) -> Any:
    """Run `model` as if shrunk, for one call; gradients reach the full weights. Norm statistics are not updated.

    weights: full-size tensors by name to cut from, in place of the model's own (hypernetworks).
    """
    keep, tensors = graph.checked(keep), checked_tensors(model, graph)
    weights = weights or {}
    for name, tensor in weights.items():
        if name not in tensors:
            raise unknown("weight", name, tensors)
        if tensor.shape != tensors[name].shape:
            raise UserError(
                f"weights[{name!r}] should be {tuple(tensors[name].shape)}, is {tuple(tensor.shape)}."
            )
    part = cut({**tensors, **weights}, graph, keep)
    part |= {n: t.clone() for n, t in part.items() if n not in graph.parameters}  # the call may write to them
    bare = skeleton.skeleton(model)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in bare.named_modules():
        module.training = modes[name]
    set_attributes(bare, graph.attributes, graph.widths(keep))
    return torch.func.functional_call(bare, part, args, kwargs)


def shrink(model: nn.Module, graph: Graph, keep: Keep, *, verify: str = "on") -> nn.Module:
    """A smaller copy of `model`, of the same class, with only the units in `keep`; the original is untouched.

    verify: "on" proves the result against the masked original, "off" trusts it (for those who shrink in a loop).
    Raises PruningError naming the axes if the proof fails, UserError if `keep` does not fit the graph.
    """
    if verify not in ("on", "off"):
        raise UserError(f'verify must be "on" or "off", got {verify!r}.')
    keep = graph.checked(keep)
    small = resized(model, graph, keep, checked_tensors(model, graph))
    if verify == "on":
        prove(model, graph, keep, small)
    return small


# ----------------------------------------------------------------------------------------- proof
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
    keep = graph.checked(keep)
    tensors = checked_tensors(model, graph)
    if small is not None:
        _check_weights(graph, keep, tensors, effective(small))
    # in a small model the few units left may all be dead for one input, and a dead unit hides its faults
    rounds = 3 if sum(map(torch.Tensor.numel, tensors.values())) < SMALL_MODEL else 1
    for dtype, tolerance in TOLERANCES.items():
        try:
            error = max(_difference(model, graph, keep, tensors, dtype, seed) for seed in range(rounds))
            return Proof(error, tolerance, time.perf_counter() - start)
        except Exception as failure:  # no such precision on this device, or a dtype written into the forward
            cause = failure
    raise PruningError(f"the two models cannot be compared, for one does not run: {cause}") from cause


def _check_weights(graph: Graph, keep: Keep, tensors: dict, small: dict) -> None:
    places: dict = {}
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
    model: nn.Module, graph: Graph, keep: Keep, tensors: dict, dtype: torch.dtype, seed: int
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
    plain = skeleton.skeleton(model, real=True)
    reference = clone(plain, masked(shaken, graph, keep)).eval()
    small = resized(plain, graph, keep, shaken).eval()
    device = next(iter(tensors.values())).device
    example = tree_map_only(torch.Tensor, lambda t: _random_like(t, dtype, device, generator), graph.example)
    with skeleton.quiet_forward():
        own = tree_map_only(torch.Tensor, torch.clone, example)  # the forward may write to it
        got = tracer.output_tensors(skeleton.call(small, own))
    expected = tracer.output_tensors(
        tracer.run(reference, example, tracer.copied_layouts(graph.layouts), keep)[1]
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


# ------------------------------------------------------------------------------- carrying over
def carry_over(
    graph: Graph,
    keep: Keep,
    model: nn.Module,
    small: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
) -> tuple[torch.optim.Optimizer | None, nn.Module | None]:
    """Optimiser state (momentum, moments) and an averaged copy of the model, cut with the same indices.

    Returns a new optimiser of the same class over `small`'s parameters, and the averaged copy shrunk; the
    given ones are untouched. State tensors shaped like their parameter are cut, others (steps) copied.
    Raises UserError if the optimiser holds parameters that are not the model's, or parametrised ones.
    """
    keep = graph.checked(keep)
    small_ema = None if ema is None else resized(ema, graph, keep, checked_tensors(ema, graph))
    if optimizer is None:
        return None, small_ema
    wrong = differences({n: graph.shape(n, keep) for n in graph.layouts}, effective(small))
    if wrong:
        raise UserError(f"the small model is not this keep of the traced one: {'; '.join(wrong[:3])}.")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(small.named_parameters())
    groups, pairs = [], []
    for group in optimizer.param_groups:
        unknown = [tuple(p.shape) for p in group["params"] if names.get(id(p)) not in graph.layouts]
        if unknown:
            raise UserError(
                f"the optimiser holds parameters that are not the traced model's: shapes {unknown[:3]}."
            )
        group_names = [names[id(p)] for p in group["params"]]
        pairs += [(p, name) for p, name in zip(group["params"], group_names, strict=True)]
        groups.append({**group, "params": [parameters[name] for name in group_names]})
    carried = type(optimizer)(groups, **{k: v for k, v in optimizer.defaults.items() if k in ("lr",)})
    for old, name in pairs:
        carried.state[parameters[name]] = {
            key: _carried(value, old, graph.layouts[name], keep, f"{key} of {name}")
            for key, value in optimizer.state.get(old, {}).items()
        }
    return carried, small_ema


def _carried(value: Any, parameter: torch.Tensor, layouts: list[axes.Layout], keep: Keep, what: str) -> Any:
    """One entry of optimiser state: cut where it has the parameter's dimensions (or 1 in their place)."""
    if not isinstance(value, torch.Tensor) or value.numel() == 1:
        return copy.deepcopy(value)
    if value.dim() != parameter.dim() or any(
        a not in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True)
    ):
        raise UserError(
            f"the optimiser's {what} has shape {tuple(value.shape)}, which does not follow the parameter's "
            f"{tuple(parameter.shape)}; start a new optimiser for the small model."
        )
    cut = [1 if n == 1 else layout for n, layout in zip(value.shape, layouts, strict=True)]
    return sliced(value, cut, keep).clone()
