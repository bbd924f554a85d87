"""A model's config, tried at other sizes.

The model is made again, without weights, from a copy of its config in which some integers are smaller. The sizes of its
tensors, and the integers that its forward pass reads, then show which axes became smaller. Everything else has to stay
as it was. A small model keeps the buffers that no file holds (the frequencies of rotary embeddings) and the factors
that the constructor computed at full size; made from a config that leads to others, it would be another model.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from prunus.graph import axes
from prunus.graph.attributes import get_integer
from prunus.graph.axes import Axis, Layout
from prunus.graph.fields import integers_read, reading, unsaid
from prunus.graph.making import Maker, Path
from prunus.graph.modules import list_modules
from prunus.graph.sizes import Place
from prunus.graph.skeleton import named_tensors
from prunus.graph.state import kept_tensors

REFUSED = "the class of the model, which takes no such sizes"
_MOST_OPEN = 8  # axes of a size that are not known one by one


class Made(NamedTuple):
    """The sizes and numbers of a model that was made again.

    Args:
        sizes: The sizes of its tensors, and the integers that its forward pass reads, by their labels.
        values: The numbers that no file holds: floats, and tensors beside those that are saved.
    """

    sizes: dict[str, int]
    values: dict[str, Any]


class Trial(NamedTuple):
    """What happened when some integers of a config were made smaller.

    Args:
        axes: The axes that became smaller.
        wrong: The labels of what else changed; empty if the model is as it was saved but for these axes.
        touches: The labels of all that changed, and the names of the axes that lie along it.
        complete: Whether the model still has all of its parts: tensors and numbers of the same names.
    """

    axes: tuple[str, ...]
    wrong: list[str]
    touches: set[str]
    complete: bool


class Config:
    """A model's config, tried at other sizes.

    Args:
        maker: Makes the model again.
        named: The axes by name.
        layouts: name -> the layouts of each parameter and buffer.
        known: The layouts of the integers that the forward pass reads.
    """

    def __init__(
        self,
        maker: Maker,
        named: Mapping[str, Axis],
        layouts: Mapping[str, Sequence[Layout]],
        known: Mapping[Place, Layout],
    ):
        self.maker, self.named, self.known = maker, named, known
        self._tensors = layouts
        with reading(maker.kept) as (read, missed):
            model = maker.make({})
        self._layouts = self._labelled(model)
        self.added: dict[Path, int] = {}
        self.base = self._say(model)
        self.fields = dict(integers_read(maker.kept, read))
        self.added = self._found(unsaid(model, maker.kept, read, missed))

    def _found(self, unsaid: Mapping[Path, Sequence[int]]) -> dict[Path, int]:
        """Find the integers that the config does not state but its class would use, with their values."""
        found: dict[Path, int] = {}
        for path, values in unsaid.items():
            for value in values:
                other, same = self._make({path: value + 1}), self._make({path: value})
                if other is not None and other.sizes == self.base.sizes and not self._other_values(other):
                    break  # the class does not use it
                if same is not None and same.sizes == self.base.sizes and not self._other_values(same):
                    found[path] = value
                    break
        return found

    @property
    def along(self) -> list[str]:
        """The axes that the size of a tensor, or an integer, of the model follows."""
        found = {axis.name for layout in self._layouts.values() for axis in axes.leaves(layout)}
        return [name for name in self.named if name in found]

    def is_same(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether the model that it makes has tensors of these shapes."""
        return all(
            self.base.sizes.get(_dimension(name, dim), size) == size
            for name, shape in shapes.items()
            for dim, size in enumerate(shape)
        )

    def _labelled(self, model: nn.Module) -> dict[str, Layout]:
        found: dict[str, Layout] = {}
        for name, tensor in named_tensors(model).items():
            for dim, layout in enumerate(self._tensors.get(name, tensor.shape)):
                found[_dimension(name, dim)] = axes.normal(layout)
        return found | {str(place): axes.normal(layout) for place, layout in self.known.items()}

    def _say(self, model: nn.Module) -> Made:
        made = sayings(model)
        for place in self.known:
            try:
                made.sizes[str(place)] = get_integer(model.get_submodule(place.module), place.path)
            except (AttributeError, LookupError):
                continue
        return made

    def _make(self, integers: Mapping[Path, int]) -> Made | None:
        """The sizes and numbers of the model that is made from other integers; None if its class refuses them."""
        try:
            return self._say(self.maker.make(self.added | dict(integers)))
        except Exception:  # whatever a constructor raises
            return None

    def misfits(self, integers: Mapping[Path, int], widths: Mapping[str, int]) -> list[str]:
        """List what would differ from the small model in a model made from these integers.

        Args:
            integers: The integers to change, with their new values.
            widths: The number of units of each axis.

        Returns:
            The labels of what differs; empty if nothing does.
        """
        made = self._make(integers)
        if made is None:
            return [REFUSED]
        return self._other_values(made) + self._other_sizes(made, widths)

    def _other_sizes(self, made: Made, widths: Mapping[str, int]) -> list[str]:
        """The labels of what has another size than it should at these widths."""
        expected = {
            label: layout if isinstance(layout, int) else axes.size(layout, widths)
            for label, layout in self._layouts.items()
        }
        names = dict.fromkeys([*expected, *made.sizes])
        return [label for label in names if made.sizes.get(label) != expected.get(label)]

    def _other_values(self, made: Made) -> list[str]:
        """The labels of the numbers that no file holds and that differ from the original's; tensors first."""
        ours = self.base.values
        names = [n for n in made.values.keys() | ours.keys() if not _equal(made.values.get(n), ours.get(n))]
        return sorted(names, key=lambda name: (isinstance(ours.get(name), float), name))

    def about_half(self, fields: Mapping[Path, int], parts: int) -> Trial | None:
        """Try about half of some integers, and other shares if the class refuses that; None if it refuses all."""
        divisors = [n for n in (5, 7, 11, 13) if parts % n == 0]
        for kept in dict.fromkeys(
            (parts // 2, parts * 3 // 4, parts // 4, *(parts - parts // n for n in (3, *divisors)))
        ):
            trial = self.attempt(fields, kept, parts) if 0 < kept < parts else None
            if trial is not None:
                return trial
        return None

    def attempt(self, fields: Mapping[Path, int], kept: int, parts: int) -> Trial | None:
        """Try the share `kept / parts` of some integers; None if the class refuses it."""
        made = self._make({path: value * kept // parts for path, value in fields.items()})
        if made is None:
            return None
        widths = self._solve(made, kept, parts)
        other = [label for label, size in self.base.sizes.items() if made.sizes.get(label) != size]
        wrong = self._other_values(made) + self._other_sizes(made, widths)
        smaller = tuple(name for name in self.named if widths[name] < self.named[name].size)
        touches = {axis.name for label in other for axis in axes.leaves(self._layouts[label])}
        touches.update(other, wrong)
        complete = all(one.keys() >= two.keys() for one, two in zip(made, self.base, strict=True))
        return Trial(smaller, wrong, touches, complete)

    def _solve(self, made: Made, kept: int, parts: int) -> dict[str, int]:
        """The widths of the axes by the sizes of the made model, each whole or at the share; whole if both would do."""
        widths: dict[str, int] = {}
        open_ = [
            (layout, made.sizes[label], list(dict.fromkeys(a.name for a in axes.leaves(layout))))
            for label, layout in self._layouts.items()
            if not isinstance(layout, int) and label in made.sizes
        ]
        open_ = list(dict.fromkeys((layout, size, tuple(names)) for layout, size, names in open_))
        while True:
            left: list[tuple[Layout, int, tuple[str, ...]]] = []
            for layout, size, names in open_:
                unknown = [name for name in names if name not in widths]
                if not unknown or len(unknown) > _MOST_OPEN:
                    left += [(layout, size, names)] if unknown else []
                    continue
                choices = [self._choices(name, kept, parts) for name in unknown]
                fitting = [
                    dict(zip(unknown, choice, strict=True))
                    for choice in product(*choices)
                    if axes.size(layout, widths | dict(zip(unknown, choice, strict=True))) == size
                ]
                if len(fitting) == 1:
                    widths |= fitting[0]
                else:
                    left.append((layout, size, names))
            if len(left) == len(open_):
                return {name: axis.size for name, axis in self.named.items()} | widths
            open_ = left

    def _choices(self, name: str, kept: int, parts: int) -> list[int]:
        size = self.named[name].size
        return [size] if size * kept % parts else [size, size * kept // parts]


def sayings(model: nn.Module) -> Made:
    """Collect the sizes of a model's tensors, and the numbers that it has beside those that a file holds."""
    tensors = named_tensors(model)
    sizes = {_dimension(name, dim): size for name, t in tensors.items() for dim, size in enumerate(t.shape)}
    values: dict[str, Any] = dict(kept_tensors(model))
    for name, module in list_modules(model):
        held = vars(module)
        found = {key: value for key, value in held.items() if type(value) is float}
        found |= {key: held["_buffers"][key] for key in held["_non_persistent_buffers_set"]}
        values |= {f"{name}.{key}".lstrip("."): value for key, value in found.items()}
    return Made(sizes, values)


def difference_of_made(model: nn.Module, again: nn.Module) -> list[str]:
    """List how a model differs from one that was made again from its config.

    Args:
        model: The model.
        again: The other one, whose parameters need no data.

    Returns:
        A phrase for each tensor or number that differs.
    """
    mine, other = sayings(model), sayings(again)
    found = [
        f"{name} is {mine.sizes.get(name, 'missing')} and would be {other.sizes.get(name, 'missing')}"
        for name in dict.fromkeys([*mine.sizes, *other.sizes])
        if mine.sizes.get(name) != other.sizes.get(name)
    ]
    names = dict.fromkeys([*mine.values, *other.values])
    return found + [
        f"{name} would have another value"
        for name in names
        if not _equal(mine.values.get(name), other.values.get(name))
    ]


def _dimension(tensor: str, dim: int) -> str:
    return f"{tensor}, dimension {dim}"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.is_meta or other.is_meta:
            return one.shape == other.shape
        return torch.equal(one.to(other.device, other.dtype), other)
    return type(one) is type(other) and one == other
