"""Weights behind steps (torch's parametrisations): which of their dimensions may shrink, and how they are set.

A *step* maps a weight to the one that the model computes with: a weight norm, a spectral norm, an orthogonal map, a
low-rank addition. A graph has such a weight under its plain name, as a parameter. When the weight is cut, its steps
stay what they were, made so that they give exactly the cut weight. Whether they can is tried when the model is traced;
a dimension in which they cannot is fixed. A norm that steps take over all units is then taken over those that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from prunus.graph import axes, tracer
from prunus.graph.axes import Axis, Layout
from prunus.graph.copying import copy_model
from prunus.graph.modules import list_modules
from prunus.graph.names import full_name
from prunus.graph.op import is_inexact, tag_of
from prunus.graph.places import Keep

Layouts = dict[str, list[Layout]]


class OwnStep(nn.Module):
    """A step that Prunus puts before a weight for some time (a mask, a gate); a cut resolves it into the weight."""


class Behind(NamedTuple):
    """A weight behind steps, under its first name.

    Args:
        name: The weight's name in the model.
        module: The module that has it.
        attribute: Its name in the module.
        steps: Its parametrize.ParametrizationList.
        path: The name of `steps` in the model.
    """

    name: str
    module: nn.Module
    attribute: str
    steps: parametrize.ParametrizationList
    path: str

    @property
    def kinds(self) -> str:
        """The classes of its steps, for messages."""
        return ", ".join(type(step).__name__.lstrip("_") for step in self.steps)

    @property
    def only_own(self) -> bool:
        """Whether all of its steps are Prunus's own."""
        return all(isinstance(step, OwnStep) for step in self.steps)


def lists_of(module: nn.Module) -> nn.ModuleDict:
    """The ParametrizationLists of a parametrised module, by the weights' names."""
    return cast(nn.ModuleDict, module.parametrizations)


def weights_behind_steps(model: nn.Module) -> list[Behind]:
    """Each parametrisation of a model once, with the first weight that it computes."""
    found: dict[nn.Module, Behind] = {}
    for prefix, module in list_modules(model):
        if parametrize.is_parametrized(module):
            for attribute, steps in lists_of(module).items():
                held = cast(parametrize.ParametrizationList, steps)
                path = full_name(prefix, f"parametrizations.{attribute}")
                found.setdefault(steps, Behind(full_name(prefix, attribute), module, attribute, held, path))
    return list(found.values())


def tensors_behind(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name the parameters and buffers behind the steps of a model that are not Prunus's own.

    Args:
        model: Any model.

    Returns:
        {name in the model: tensor}.
    """
    found: dict[str, torch.Tensor] = {}
    for held in weights_behind_steps(model):
        own = [f"{i}." for i, step in enumerate(held.steps) if isinstance(step, OwnStep)]
        if not held.only_own:
            tensors = [*held.steps.named_parameters(), *held.steps.named_buffers()]
            found |= {f"{held.path}.{n}": t for n, t in tensors if not n.startswith(tuple(own))}
    return found


@contextmanager
def _still(steps: nn.Module) -> Iterator[None]:
    """Keep steps from changing what they keep while they compute: in training a spectral norm iterates."""
    training = steps.training
    steps.eval()
    try:
        yield
    finally:
        steps.train(training)


def read_tensor(model: nn.Module, name: str) -> torch.Tensor:
    """Read a parameter or buffer; where the model computes it by steps, their result, without changing them.

    Args:
        model: Any model.
        name: The tensor's plain name.

    Returns:
        The tensor.
    """
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if not parametrize.is_parametrized(module, attribute):
        return getattr(module, attribute)
    with _still(lists_of(module)[attribute]):
        return getattr(module, attribute)


# ---------------------------------------------------------------------------------------- the trace
def follow_steps(model: nn.Module, layouts: Layouts, name_axes: Callable[[], Any]) -> Layouts:
    """Learn the layouts behind the steps of a model, and fix the dimensions in which a step cannot give a cut weight.

    Args:
        model: The model itself; it is not changed.
        layouts: The layouts of its weights, from its forward pass; those behind steps are unified with what the steps
            say, or fixed.
        name_axes: Names the axes; called if the model has steps.

    Returns:
        The layouts of the tensors behind steps, where they are known.
    """
    behind: Layouts = {}
    weights = [w for w in weights_behind_steps(model) if not w.only_own and w.name in layouts]
    for weight in weights:
        behind |= _learn(weight, layouts[weight.name])
    if weights:
        name_axes()
    for weight in weights:
        dims = layouts[weight.name]
        for tried in [*([layout] for layout in dims), dims]:  # each alone, and all together
            free = [axis for layout in tried for axis in axes.leaves(layout)]
            if free and not _can_shrink(weight, dims, behind, free):
                for layout in tried:
                    axes.fix(layout, f"{weight.kinds}, which cannot give {weight.name} with fewer units")
    return behind


def _learn(weight: Behind, layouts: list[Layout]) -> Layouts:
    """The layouts of what is behind one weight, from a run of its steps; its dimensions are unified with `layouts`.

    Steps that keep no buffers can be set through their inverses, whatever they compute, so nothing is fixed for them.
    """
    memo = {id(t): t.detach().to("meta") for t in weight.steps.buffers() if is_inexact(t)}
    for tensor in weight.steps.parameters():
        memo[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
    bare = without_own(copy_model(weight.steps, memo)).eval()
    found, sizes = tracer.fresh_layouts(bare), [axes.size(layout) for layout in layouts]
    try:
        tag = tag_of(tracer.run(bare, (), found)[1])
        dims, unknown = (sizes, ["an operator that loses track"]) if tag is None else (tag.dims, [])
    except Exception as error:  # any error of the steps' own code on tensors without data
        dims, unknown = sizes, [str(error)]
    fixed = [axis.fixed for dims in found.values() for layout in dims for axis in axes.ends(layout)]
    unknown += [str(why) for why in fixed if why]
    if unknown and not any(True for _ in bare.buffers()):
        return {}
    reason = f"{weight.kinds} of {weight.name}" + (
        f": {', '.join(dict.fromkeys(unknown))}" if unknown else ""
    )
    for ours, theirs in zip(layouts, dims, strict=True):
        axes.unify(ours, theirs, reason)
    return {f"{weight.path}.{name}": dims for name, dims in found.items()}


@torch.no_grad()
def _can_shrink(weight: Behind, layouts: list[Layout], behind: Layouts, free: Collection[Axis]) -> bool:
    """Whether the steps can give the weight with half the units of some axes, tried on weights near the model's own."""
    keep = {axis.name: range((axis.size + 1) // 2) for axis in free}
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(_near(tensor, generator), requires_grad=False)
        for tensor in weight.steps.parameters()
    }
    memo |= {id(tensor): _near(tensor, generator) for tensor in weight.steps.buffers() if tensor.is_meta}
    whole = cast(parametrize.ParametrizationList, without_own(copy_model(weight.steps, memo)).eval())
    memo = {}
    for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
        small = _cut(tensor, behind.get(f"{weight.path}.{name}", []), keep)
        memo[id(tensor)] = nn.Parameter(small, False) if isinstance(tensor, nn.Parameter) else small
    return give(copy_model(whole, memo), _cut(whole(), layouts, keep))


def _near(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A tensor with some noise, so that zeros and ones of fresh weights hide nothing; noise alone if it has no data."""
    noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    if tensor.is_meta:
        return noise
    return tensor + noise.to(tensor.device) * (0.1 * tensor.abs().float().square().mean().sqrt() + 0.01)


def _cut(tensor: torch.Tensor, layouts: list[Layout], keep: Keep) -> torch.Tensor:
    for dim, layout in enumerate(layouts):
        tensor = tensor.index_select(dim, axes.positions(layout, keep).to(tensor.device))
    return tensor.clone()


def without_own(steps: Any) -> Any:
    """Take Prunus's own steps out of a ParametrizationList, in place; returns it."""
    for i in reversed(range(len(steps))):
        if isinstance(steps[i], OwnStep):
            del steps[i]
    return steps


# ------------------------------------------------------------------------------------------ the cut
@torch.no_grad()
def give(steps: Any, value: torch.Tensor) -> bool:
    """Let the steps before a weight give a value, in place; their tensors become parameters of the shapes needed.

    What works first is done: nothing; one original set through the right inverses; all of them; and, for steps that
    divide by a norm that they keep in buffers, the buffers renewed in training mode and scaled to the value.

    Args:
        steps: A ParametrizationList, without steps of Prunus's own.
        value: What it has to give.

    Returns:
        Whether it does, up to rounding; if not, the steps are as they were.
    """
    training, before = (
        steps.training,
        [(m, dict(m._parameters), _copies(m._buffers)) for m in steps.modules()],
    )
    given = any(_succeeds(way, steps, value) for way in (_as_they_are, _invert_one, _invert, _renew))
    steps.train(training)
    for module, parameters, buffers in [] if given else before:
        module._parameters, module._buffers = parameters, buffers
    return given


def _copies(tensors: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    return {name: None if tensor is None else tensor.clone() for name, tensor in tensors.items()}


def _succeeds(way: Callable[[Any, torch.Tensor], None], steps: Any, value: torch.Tensor) -> bool:
    steps.eval()  # in training mode a spectral norm would iterate
    try:
        way(steps, value)
        return _gives(steps, value)
    except Exception:  # any error of the steps' own code: no inverse, sizes that do not fit
        return False


def _gives(steps: Any, value: torch.Tensor) -> bool:
    return same_value(steps(), value)


def same_value(given: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether steps give a value up to the rounding of their arithmetic."""
    rtol = max(1e-5, 4 * torch.finfo(value.dtype).eps)
    return given.shape == value.shape and torch.allclose(given, value.to(given), rtol=rtol)


def _as_they_are(steps: Any, value: torch.Tensor) -> None:
    """Nothing to do, if the tensors behind the steps were cut with the weight.

    Raises ValueError if they are of other sizes than the value's would be: some kernels of torch do not check, and read
    beyond their end.
    """
    try:
        found = _originals(steps, value)
    except Exception:  # no inverse says which sizes are right
        return
    if any(getattr(steps, name).shape != new.shape for name, new in found.items()):
        raise ValueError("the tensors behind the steps were not cut")


def _invert_one(steps: Any, value: torch.Tensor) -> None:
    """Set one of several originals (the lengths of a weight norm); the others (directions) stay as they were cut."""
    _as_they_are(steps, value)
    for name, new in _originals(steps, value).items():
        old = getattr(steps, name)
        setattr(steps, name, new)
        if _gives(steps, value):
            return
        setattr(steps, name, old)


def _invert(steps: Any, value: torch.Tensor) -> None:
    for name, new in _originals(steps, value).items():
        setattr(steps, name, new)
    if steps().isnan().any():  # a norm of zero has no inverse; one that is almost zero has
        least = torch.finfo(value.dtype).tiny ** 0.5 * 16
        for name, new in _originals(steps, torch.where(steps().isnan(), least, value)).items():
            setattr(steps, name, new)


def _originals(steps: Any, value: Any) -> dict[str, torch.Tensor]:
    """The originals that the steps' right inverses make of a value, by their names in the list."""
    for step in reversed(steps):
        value = step.right_inverse(value)
    values = value if isinstance(value, (tuple, list)) else [value]
    names = ["original"] if steps.is_tensor else [f"original{i}" for i in range(len(values))]
    found = {name: new.detach().clone() for name, new in zip(names, values, strict=True)}
    for name, old in [(name, getattr(steps, name)) for name in found]:
        if isinstance(old, nn.Parameter):
            found[name] = nn.Parameter(found[name], old.requires_grad)
    return found


_ROUNDS = (
    20  # of power iteration, say: the value is exact after any number, its norm is then near the true one
)


def _renew(steps: Any, value: torch.Tensor) -> None:
    kept = [buffer for buffer in steps.buffers() if is_inexact(buffer)]
    with torch.random.fork_rng(devices=[]):
        steps.train()
        for _ in range(_ROUNDS if kept else 0):
            steps()
    steps.eval()
    factor = (steps().double() * value.double()).sum() / value.double().square().sum()
    for buffer in kept:
        for scale in (factor, 1 / factor):
            old = buffer.clone()
            buffer.copy_(old * scale)
            if _gives(steps, value):
                return
            buffer.copy_(old)
