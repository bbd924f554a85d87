"""Sizes that a model states and its forward pass never reads, followed from its construction.

Many classes keep all that they are made from: `Model(config)` keeps `config`. Such a model is made again on the meta
device, from a copy of what it keeps whose integers have terms. Then each of its attributes says of which integers it
was computed, torch's layers say which dimension of a weight each of their sizes is, and so do the calls that make other
parameters. Together these tell how large the config and the attributes are after a cut. Nothing here fixes or unifies
an axis. Source: ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from prunus.graph import axes
from prunus.graph.allocations import Allocations
from prunus.graph.attributes import get_integer, integers_of
from prunus.graph.axes import Layout
from prunus.graph.making import Maker
from prunus.graph.names import full_name, holder
from prunus.graph.sizes import Journal, Made, Place, Sized, Term, ends, plain
from prunus.graph.skeleton import named_tensors
from prunus.graph.solve import Claim, Solver

_WEIGHT = ("weight", "running_mean")
_STATED = {  # attribute in which torch's layers state a size -> the dimension, and the tensor, the first that is there
    "in_features": (1, _WEIGHT),
    "out_features": (0, _WEIGHT),
    "num_features": (0, _WEIGHT),
    "num_channels": (0, _WEIGHT),
    "num_embeddings": (0, _WEIGHT),
    "embedding_dim": (1, _WEIGHT),
    "num_parameters": (0, _WEIGHT),
    "input_size": (1, ("weight_ih", "weight_ih_l0")),
    "hidden_size": (1, ("weight_hr_l0", "weight_hh", "weight_hh_l0")),
}


def stated_sizes(module: str, tensors: Collection[str]) -> Iterator[tuple[str, str, int]]:
    """List what the layers of torch state about their sizes.

    Args:
        module: The name of a module.
        tensors: The names of the model's parameters and buffers.

    Yields:
        Each attribute that such a module may have, with the name and the dimension of the tensor that it states.
    """
    for attribute, (dim, names) in _STATED.items():
        for tensor in (full_name(module, name) for name in names):
            if tensor in tensors:
                yield attribute, tensor, dim
                break


class Stated(NamedTuple):
    """An integer that the forward pass never reads, with the layouts of which it is the size.

    Args:
        place: Where it is.
        layouts: One layout, or one for each layer that it describes: it can follow where their sizes agree.
    """

    place: Place
    layouts: tuple[Layout, ...]


def stated(
    model: nn.Module,
    maker: Maker | None,
    layouts: Mapping[str, list[Layout]],
    known: Mapping[Place, Layout],
) -> list[Stated]:
    """List what a model states about its sizes beside what its forward pass reads.

    Args:
        model: The model.
        maker: What makes it again; None if it does not keep what it is made from.
        layouts: The layouts of its parameters and buffers.
        known: The integers that the forward pass reads.

    Returns:
        The integers; none if the model cannot be made again from what it keeps.
    """
    allocations = Allocations()
    again = None if maker is None else _made_again(model, maker, allocations)
    if again is None:
        return []
    layouts = _by_all_names(again, layouts)
    claims = [*_claims(again, layouts, known), *_allocated(again, layouts, allocations)]
    solved = _solve_everywhere(claims)
    candidates: dict[Place, dict[Layout, None]] = {}
    for claim in claims:  # what the forward pass reads, and stays, was made from this size
        if isinstance(claim.layout, int) and isinstance(claim.term, Place):
            candidates.setdefault(claim.term, {})[claim.layout] = None
    for each in solved.values():
        for place, layout in each.items():
            candidates.setdefault(place, {})[layout] = None
    found = [Stated(place, tuple(each)) for place, each in candidates.items() if place not in known]
    said = _said_everywhere(claims)
    for name, module in again.named_modules():
        own = {key: layouts[tensor][dim] for key, tensor, dim in _sizes_of(name, module, layouts)}
        for key, value in vars(module).items():
            if isinstance(value, Sized) and (place := Place(name, (key,), plain(value))) not in known:
                each = (own[key],) if key in own else _layouts_near(value.term, name, solved, said)
                found.append(Stated(place, each))
    return [each for each in found if axes.can_shrink(*each.layouts)]


def _made_again(model: nn.Module, maker: Maker, allocations: Allocations) -> nn.Module | None:
    """The model once more, on the meta device, its integers with terms; None if that is not the same model."""
    try:
        with allocations:
            again = maker.make_marked(lambda values: integers_of(values, Journal(lambda: "")))
    except Exception:  # whatever a constructor raises: then nothing is known
        return None
    ours, theirs = named_tensors(model), named_tensors(again)
    same = ours.keys() == theirs.keys() and all(ours[n].shape == theirs[n].shape for n in ours)
    return again if same else None


def _by_all_names(model: nn.Module, layouts: Mapping[str, list[Layout]]) -> dict[str, list[Layout]]:
    """The layouts of a model's tensors; those of tied ones by each of their names."""
    first = {id(tensor): name for name, tensor in named_tensors(model).items()}
    names = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: layouts[first[id(tensor)]] for name, tensor in names if first[id(tensor)] in layouts}


def _claims(
    again: nn.Module, layouts: Mapping[str, list[Layout]], known: Mapping[Place, Layout]
) -> Iterator[Claim]:
    """The claims about sizes that the layers of a model made again make, and the integers of its forward pass."""
    for name, module in again.named_modules():
        for key, tensor, dim in _sizes_of(name, module, layouts):
            yield Claim(layouts[tensor][dim], vars(module)[key].term, name)
    for place, layout in known.items():
        try:
            value = get_integer(again.get_submodule(place.module), place.path)
        except (AttributeError, LookupError):
            continue
        if isinstance(value, Sized):
            yield Claim(layout, value.term, place.module)


def _allocated(
    again: nn.Module, layouts: Mapping[str, list[Layout]], allocations: Allocations
) -> Iterator[Claim]:
    """The claims about sizes by the calls that made the parameters of a model, where no layer of torch makes one."""
    for name, module in again.named_modules():
        said = {(tensor, dim) for _, tensor, dim in _sizes_of(name, module, layouts)}
        for key, parameter in module.named_parameters(prefix=name, recurse=False):
            for dim, term in allocations.terms(parameter):
                if key in layouts and (key, dim) not in said:
                    yield Claim(layouts[key][dim], term, name)


def _sizes_of(
    name: str, module: nn.Module, layouts: Mapping[str, list[Layout]]
) -> Iterator[tuple[str, str, int]]:
    """The sizes with terms that a layer of torch states about itself, each with its tensor and the dimension there."""
    found = list(stated_sizes(name, layouts))
    weight = full_name(name, "weight")
    if (
        weight in layouts and getattr(module, "groups", None) == 1
    ):  # with groups, inputs are no dimension's size
        inner, outer = (0, 1) if getattr(module, "transposed", False) else (1, 0)
        found += [("in_channels", weight, inner), ("out_channels", weight, outer)]
    for key, tensor, dim in found:
        if isinstance(vars(module).get(key), Sized) and dim < len(layouts[tensor]):
            yield key, tensor, dim


def _above(name: str) -> Iterator[str]:
    """A module's name, and those of the modules around it, up to the whole model."""
    while name:
        yield name
        name = holder(name)
    yield ""


def _solve_everywhere(claims: Iterable[Claim]) -> dict[str, dict[Place, Layout]]:
    """For each module, the layouts of places by the claims within it; those that are not one layout are left out."""
    within: dict[str, list[Claim]] = {}
    for claim in claims:
        for name in _above(claim.why):
            within.setdefault(name, []).append(claim)
    return {name: _solutions(each) for name, each in within.items()}


def _solutions(claims: list[Claim]) -> dict[Place, Layout]:
    """The layouts of places by some claims, of those that have one layout."""
    found: dict[Place, set[Layout]] = {}
    claims = _with_known_parts(claims)
    while True:
        known = {place: next(iter(each)) for place, each in found.items() if len(each) == 1}
        before = sum(map(len, found.values()))
        for claim in claims:
            solution = Solver(known).solution(claim)
            if solution is not None:
                found.setdefault(solution[0], set()).add(axes.normal(solution[1]))
        if sum(map(len, found.values())) == before:
            return known


def _with_known_parts(claims: list[Claim]) -> list[Claim]:
    """Put layouts in place of parts of terms, where another claim says what the part is.

    `heads * (width // heads)` has `heads` twice; it can be solved once `width // heads` is known to be a head's size.
    """
    said: dict[Any, set[Layout]] = {}
    for claim in claims:
        if isinstance(claim.term, Made):
            said.setdefault(_form(claim.term), set()).add(axes.normal(claim.layout))
    known = {form: next(iter(each)) for form, each in said.items() if len(each) == 1}

    def with_known(term: Term) -> Term:
        if not isinstance(term, Made):
            return term
        layout = known.get(_form(term))
        return within(term) if layout is None else layout

    def within(term: Term) -> Term:
        return (
            Made(term.sign, with_known(term.left), with_known(term.right)) if isinstance(term, Made) else term
        )

    return [claim._replace(term=within(claim.term)) for claim in claims]


def _form(term: Term) -> Any:
    """A key that is equal for terms which were computed alike."""
    return (term.sign, _form(term.left), _form(term.right)) if isinstance(term, Made) else term


def _said_everywhere(claims: Iterable[Claim]) -> dict[str, dict[Any, dict[Layout, None]]]:
    """For each module, the layouts that the claims within it give for a term, by its form."""
    said: dict[str, dict[Any, dict[Layout, None]]] = {}
    for claim in claims:
        for name in _above(claim.why):
            said.setdefault(name, {}).setdefault(_form(claim.term), {})[axes.normal(claim.layout)] = None
    return said


def _layouts_near(
    term: Term,
    name: str,
    solved: Mapping[str, Mapping[Place, Layout]],
    said: Mapping[str, Mapping[Any, Mapping[Layout, None]]],
) -> tuple[Layout, ...]:
    """The layouts of a term by what is known in the nearest module around `name`: said of it there, or computed."""
    for around in _above(name):
        each = said.get(around, {}).get(_form(term))
        if each:
            return tuple(each)
        known = solved.get(around, {})
        if all(end in known for end in ends(term) if isinstance(end, Place)):
            layout = Solver(dict(known)).layout(term)
            return () if layout is None else (layout,)
    return ()
