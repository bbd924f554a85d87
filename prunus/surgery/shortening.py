"""Lists of modules, shortened by the blocks that are skipped; the links that stay are numbered anew.

An attribute is taken for a link's number (layer_idx, by which a cache is found) if it has that value in every link. An
integer of the config is taken for the number of links if the model's class makes as many from it. A list is shortened
only if the model then runs the same operators as with a `Skipped` in each block's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunus.graph import (
    Graph,
    Maker,
    Path,
    get_integer,
    holder,
    integers,
    lies_in,
    make_skeleton,
    members,
    operators_of,
    set_integer,
)
from prunus.surgery.skipped import Skip, Skipped
from prunus.surgery.structure import Structure


@torch.inference_mode(False)  # see graph.trace
def shorten_where_exact(model: nn.Module, small: nn.Module, graph: Graph) -> None:
    """Shorten, in place, the lists in which blocks are skipped, if the model runs the same operators without them.

    Args:
        model: The original, whose attributes show which of them number the links.
        small: A model with a `Skipped` in the place of each block.
        graph: The graph of the original, whose examples it is run on.
    """
    skips = [module.skip for module in small.modules() if isinstance(module, Skipped)]
    wanted: list[Any] = []
    for parent in _lists(small, skips):
        shorter = make_skeleton(small)
        if not shorten(model, shorter, parent):
            continue
        wanted = wanted or _operators(small, graph)
        try:
            same = _operators(shorter, graph) == wanted
        except Exception:  # whatever is raised by code that needs a certain link
            same = False
        if same:
            shorten(model, small, parent)


def _operators(model: nn.Module, graph: Graph) -> list[Any]:
    """The operators that a model runs in each mode that had to be traced."""
    return [operators_of(model, mode, graph.modes[mode]) for mode in graph.traced]


def shorten_like(model: nn.Module, small: nn.Module, structure: Structure) -> None:
    """Shorten the lists that a structure names, in place, inner ones first; for a model that is loaded from a file.

    Args:
        model: The original.
        small: A model with a `Skipped` in the place of each block.
        structure: The structure that it is to have.
    """
    for parent in sorted(structure.shortened, reverse=True):
        shorten(model, small, parent)


def _lists(small: nn.Module, skips: Sequence[Skip]) -> Iterator[str]:
    """The lists in which blocks are skipped, inner ones first, so that names stay right.

    Lists whose links are numbered otherwise than 0, 1, 2 stay whole.
    """
    for parent in sorted({holder(skip.module) for skip in skips}, reverse=True):
        module = small.get_submodule(parent)
        names = list(module._modules)
        counted = names == list(map(str, range(len(names)))) or not any(map(str.isdigit, names))
        branches = any(skip.branch for skip in skips if holder(skip.module) == parent)
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and counted and not branches:
            yield parent


def shorten(model: nn.Module, small: nn.Module, parent: str) -> bool:
    """Take the skipped links out of a list, and number the others anew, in place.

    Args:
        model: The original.
        small: The model with a `Skipped` in the place of each block.
        parent: The name of the list.

    Returns:
        Whether any link stays; otherwise nothing is changed.
    """
    links = small.get_submodule(parent)._modules
    stays = [name for name, link in links.items() if not isinstance(link, Skipped)]
    if not stays:
        return False
    inside = {name: dict(links[name].named_modules()) for name in stays}  # pyright: ignore
    for name, path, key, start in _counters(model.get_submodule(parent)._modules):
        module = inside[name].get(path) if name in inside else None
        if module is not None:
            setattr(module, key, stays.index(name) + start)
    before, names = len(links), list(links)
    left = [links[name] for name in stays]
    links.clear()
    numbered = all(name.isdigit() for name in names)
    links.update(zip(map(str, range(len(left))) if numbered else stays, left, strict=True))
    _count_in_arguments(small, before, [names.index(name) for name in stays])
    return True


def _counters(links: dict[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    """The attributes that hold a link's number, from 0 or 1 on, wherever they are: link, path, attribute, start."""
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for number, (name, link) in enumerate(links.items()):
        for path, module in link.named_modules():
            for key, value in vars(module).items():
                if type(value) is int:
                    found.setdefault((path, key), []).append((name, value - number))
    for (path, key), each in found.items():
        starts = {start for _, start in each}
        if len(each) > 1 and len(starts) == 1 and starts <= {0, 1}:
            yield from ((name, path, key, start) for name, start in each)


# ------------------------------------------------------------------------------------------- configs
def _count_in_arguments(model: nn.Module, before: int, numbers: Sequence[int]) -> None:
    """Set the number of links in the arguments that the model keeps, if its class makes this model from them."""
    maker = Maker.of(model)
    if maker is None:
        return
    wanted = _module_names(model)
    for path in [path for path, _, value in integers(maker.kept) if value == before]:
        beside = _lists_beside(maker.kept, path, numbers, before)
        for values in ({path: len(numbers), **beside}, {path: len(numbers)}):
            try:
                again = maker.make(values)
            except Exception:  # whatever a constructor raises
                continue
            if _module_names(again, like=model) == wanted:
                for place, value in values.items():
                    set_integer(model, place, value)
                return


def _lists_beside(
    values: Mapping[str, Any], path: Path, numbers: Sequence[int], before: int
) -> dict[Path, Any]:
    """The lists beside a number of links that have an item for each link, cut to the links that stay."""
    owner = get_integer(values, path[:-1])
    return {
        (*path[:-1], key): [value[number] for number in numbers]
        for key, value in (members(owner) or {}).items()
        if isinstance(value, list) and len(value) == before
    }


def _module_names(model: nn.Module, like: nn.Module | None = None) -> set[str]:
    """The names of a model's modules, without those within blocks that `like` skips."""
    skipped = [name for name, module in (like or model).named_modules() if isinstance(module, Skipped)]
    return {
        name
        for name, _ in model.named_modules()
        if not any(lies_in(name, each) and name != each for each in skipped)
    }
