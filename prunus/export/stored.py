"""How a checkpoint stores the tensors of a model: as they are, under other names, or in parts.

transformers writes some models otherwise than their classes hold them: tensors have other names in the file, and each
expert of a mixture has tensors of its own, which `from_pretrained` stacks. The function that `save_pretrained` converts
tensors with says how: it is given views of a few integers, which are as large as the tensors but take no memory, and
what it returns tells where each number comes from. Source: ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunus.errors import UserError
from prunus.files import Count
from prunus.graph import Where, tensors_in

Convert = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
_COPIES = {"contiguous"}  # functions of torch
_VIEWS = {"chunk", "split", "squeeze", "unsqueeze", "transpose", "size", "dim", "__get__", "__getitem__"}


class Part(NamedTuple):
    """A tensor of a file, as a part of one of the model's.

    Args:
        tensor: The name of the model's tensor.
        shape: The part's own shape.
        held: For each dimension of the model's tensor the places that the part holds, ascending: LongTensor.
        dims: For each of them the number of the part's dimension that runs along it; None for a single place.
    """

    tensor: str
    shape: tuple[int, ...]
    held: list[torch.Tensor]
    dims: list[int | None]


class Cut(NamedTuple):
    """A tensor of the small model's file: which places of a tensor of the original's file it holds.

    Args:
        source: The name of that tensor.
        where: For each dimension of it the places, LongTensor, or None for all.
        part: The tensor as a part of one of the small model's.
    """

    source: str
    where: Where
    part: Part


class Range(msgspec.Struct, frozen=True):
    """A tensor in keep.json that is a part of one of the model's.

    Args:
        tensor: The name of the model's tensor.
        starts: For each dimension of that tensor the first place of the part.
        stops: For each the place after its last one.
    """

    tensor: str
    starts: list[Count]
    stops: list[Count]


def parts_of(model: nn.Module) -> dict[str, Part]:
    """Say how the tensors of a model are stored in its checkpoint.

    Args:
        model: The model, with or without weights.

    Returns:
        The part by its name in the file. Tensors that several names share are there under each of them. Empty for a
        model whose conversion does more than to rename, split and move numbers, such as one that joins tensors.
    """
    tensors = named(model)
    names, shapes = list(tensors), {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    deepest = max((len(shape) for shape in shapes.values()), default=0)
    convert = _converter(model)

    def views(numbers: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        return convert({name: numbers(name).expand(shapes[name]) for name in names})

    def along(dim: int) -> Callable[[str], torch.Tensor]:
        def numbers(name: str) -> torch.Tensor:
            shape = shapes[name]
            ones = [-1 if d == dim else 1 for d in range(len(shape))]
            return torch.arange(shape[dim]).view(ones) if dim < len(shape) else torch.tensor(0)

        return numbers

    try:
        owners = views(lambda name: torch.tensor(names.index(name)))
        each = [views(along(dim)) for dim in range(deepest)]
        own = {name: names[_first(owner)] for name, owner in owners.items()}
        return {name: _part(own[name], shapes[own[name]], [run[name] for run in each]) for name in owners}
    except Exception:  # _NotAViewError, or whatever else a conversion raises about these views
        return {}


def whole_parts(model: nn.Module) -> dict[str, Part]:
    """Say how a model's tensors are stored where each is stored as it is, under its own name; as `parts_of`."""
    tensors = named(model)
    return {
        name: Part(name, tuple(t.shape), list(map(torch.arange, t.shape)), list(range(t.dim())))
        for name, t in tensors.items()
    }


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name the parameters and buffers of a model; tied ones by each of their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def first_names(model: nn.Module) -> dict[str, str]:
    """Return, for each name of a tensor of a model, the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named(model).items()}


def _first(tensor: torch.Tensor) -> int:
    return int(tensor[(0,) * tensor.dim()])


def _part(name: str, shape: tuple[int, ...], views: list[torch.Tensor]) -> Part:
    """The part whose numbers run along these views, one for each dimension of the model's tensor."""
    index: list[torch.Tensor] = []
    dims: list[int | None] = []
    own = tuple(views[0].shape) if views else ()
    for view in views[: len(shape)]:
        runs = [d for d, stride in enumerate(view.stride()) if view.shape[d] > 1 and stride]
        if len(runs) > 1:
            raise _NotAViewError
        dims.append(runs[0] if runs else None)
        index.append(view[tuple(slice(None) if d in runs else 0 for d in range(view.dim()))].reshape(-1))
    single = sorted((d for d, dim in enumerate(dims) if dim is None), key=lambda d: shape[d] > 1)
    left = [
        d for d in range(len(own)) if d not in dims
    ]  # of length 1, along those that are of length 1 themselves
    for place, dim in zip(sorted(single[: len(left)]), left, strict=False):
        dims[place] = dim
    return Part(name, own, index, dims)


class _NotAViewError(Exception):
    """A conversion does more than to choose numbers."""


class _Views(TorchFunctionMode):
    """Lets a conversion choose numbers of tensors, without copies; raises _NotAViewError for whatever else it does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _COPIES:  # a copy would take the memory of the whole tensor
            tensor, *_ = args
            return tensor
        if name not in _VIEWS and tensors_in([*args, *kwargs.values()]):
            raise _NotAViewError(name)
        return func(*args, **kwargs)


def _converter(model: nn.Module) -> Convert:
    """What transformers does to the tensors of a model before it writes them; nothing for other models."""
    if type(model).__module__.partition(".")[0] != "transformers":
        return dict
    try:
        revert = importlib.import_module("transformers.core_model_loading").revert_weight_conversion
    except (ImportError, AttributeError):  # a version that writes tensors as they are
        return dict

    def convert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with _Views():
            return revert(model, tensors)

    return convert


# ---------------------------------------------------------------------------------------------- cuts
def cuts(
    held: Mapping[str, Part],
    wanted: Mapping[str, Part],
    originals: Mapping[str, str],
    stays: Callable[[str], Where],
) -> dict[str, Cut]:
    """Say which places of the original's files make the tensors of the small model's.

    Args:
        held: The parts in the original's files.
        wanted: The parts that the small model's files may have; others than `held` can make are left out.
        originals: The original's name of each tensor of the small model.
        stays: Returns, for the name of an original's tensor, the places that stay along each of its dimensions.

    Returns:
        The cuts by the names in the small model's files.
    """
    of: dict[Any, list[tuple[str, Part]]] = {}
    for name, part in held.items():
        of.setdefault((part.tensor, *_singles(part, part.held)), []).append((name, part))
    found: dict[str, Cut] = {}
    for name, part in wanted.items():
        original = originals[part.tensor]
        stay = stays(original)
        index = [own if kept is None else kept[own] for own, kept in zip(part.held, stay, strict=True)]
        for source, there in of.get((original, *_singles(part, index)), ()):
            where = _where(there, index)
            if where is not None:
                found[name] = Cut(source, where, part)
                break
    return found


def _singles(part: Part, index: list[torch.Tensor]) -> Iterator[int]:
    """The places of a part along the dimensions along which it does not run."""
    return (int(each[0]) for each, dim in zip(index, part.dims, strict=True) if dim is None)


def _where(part: Part, index: list[torch.Tensor]) -> Where | None:
    """The places in a part, by its dimensions, at which it holds these places of the model's tensor; None if not."""
    where: Where = [None] * len(part.shape)
    for there, dim, wanted in zip(part.held, part.dims, index, strict=True):
        at = torch.searchsorted(there, wanted)
        if not len(wanted) or at[-1] >= len(there) or not torch.equal(there[at], wanted):
            return None
        if dim is not None and len(at) < len(there):
            where[dim] = at
    return where


# ------------------------------------------------------------------------------------- in keep.json
def range_of(part: Part, tensor: str) -> Range:
    """Write down a part of a tensor; UserError for one that is not in one piece, or turned round."""
    runs = [dim for dim in part.dims if dim is not None]
    if runs != sorted(runs) or any(len(each) != each[-1] - each[0] + 1 for each in part.held):
        raise UserError(
            f"{tensor} is stored turned round, or in parts that lie between each other. Load the model, shrink it, and "
            "save it with save_pretrained."
        )
    return Range(tensor, [int(each[0]) for each in part.held], [int(each[-1]) + 1 for each in part.held])


def join(
    tensors: Mapping[str, torch.Tensor], parts: Mapping[str, Range], shapes: Mapping[str, list[int]]
) -> dict[str, torch.Tensor]:
    """Put tensors together from their parts.

    Args:
        tensors: The tensors of some files, by name.
        parts: Those of them that are parts, by name.
        shapes: The shapes of the tensors that they are parts of.

    Returns:
        The tensors by name, whole.

    Raises:
        ValueError: The parts do not make the tensors.
    """
    found = {name: tensor for name, tensor in tensors.items() if name not in parts}
    filled: dict[str, int] = {}
    for name, part in parts.items():
        if name not in tensors or part.tensor not in shapes or len(part.starts) != len(shapes[part.tensor]):
            raise ValueError(f"{name} is missing or no part of {part.tensor}")
        whole = found.setdefault(part.tensor, tensors[name].new_empty(shapes[part.tensor]))
        place = whole[tuple(slice(*each) for each in zip(part.starts, part.stops, strict=True))]
        if place.numel() != tensors[name].numel():
            raise ValueError(f"{name} has another size than its part of {part.tensor}")
        place.copy_(tensors[name].view(place.shape))
        filled[part.tensor] = filled.get(part.tensor, 0) + place.numel()
    for name, count in filled.items():
        if count != found[name].numel():
            raise ValueError(f"some parts of {name} are missing")
    return found
