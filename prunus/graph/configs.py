"""The widths that a model's own config can say, so that the model can be made again from it, and hold what was saved.

It is found by trying. Each integer of the config that its class reads is made smaller, alone or with others by the same
share, and the model is made again without weights. What its tensors and attributes are then says which axes became
smaller with it. All else has to stay: buffers that no file holds (the frequencies of rotary embeddings) and factors that
the constructor computes would be others than those of the small model, which were made at full size. Axes that no
integers say in this way stay whole. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import nn

from prunus.graph import axes
from prunus.graph.attributes import get_integer
from prunus.graph.axes import Axis, Layout
from prunus.graph.making import Maker, Path
from prunus.graph.modules import list_modules
from prunus.graph.sizes import Place
from prunus.graph.skeleton import named_tensors
from prunus.graph.state import kept_tensors
from prunus.graph.ties import Tie, Ties, common_parts

_MOST_FIELDS = 6  # that shrink together
_MOST_OPEN = 8  # axes of a size that are not known one by one


class Made(NamedTuple):
    """What a model says of itself that was made again.

    Args:
        sizes: The sizes of its tensors, and the integers that its forward pass reads, by what they are called.
        values: The numbers that no file holds: floats, and tensors beside those that are saved.
    """

    sizes: dict[str, int]
    values: dict[str, Any]


class Trial(NamedTuple):
    """What happened when some integers of a config were made smaller.

    Args:
        axes: The axes that became smaller.
        wrong: What else changed, by what it is called; empty if the model holds what was saved.
        touches: All that changed, and the axes along it.
        complete: Whether the model still has all of its parts: tensors and numbers of the same names.
    """

    axes: tuple[str, ...]
    wrong: list[str]
    touches: set[str]
    complete: bool


class Config:
    """What a model is made from, tried at other sizes.

    Args:
        maker: What makes it.
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
        self.fields = dict(_integers(maker.kept, read))
        self.added = self._found(_unsaid(model, maker.kept, read, missed))

    def _found(self, unsaid: Mapping[Path, Sequence[int]]) -> dict[Path, int]:
        """Of integers that a config may state, and does not, those that its class goes by, with their values."""
        found: dict[Path, int] = {}
        for path, values in unsaid.items():
            for value in values:
                other, same = self._make({path: value + 1}), self._make({path: value})
                if other is not None and other.sizes == self.base.sizes and not self._other_values(other):
                    break  # the class does not go by it
                if same is not None and same.sizes == self.base.sizes and not self._other_values(same):
                    found[path] = value
                    break
        return found

    def is_same(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether the model that it makes has tensors of these shapes."""
        return all(
            self.base.sizes.get(f"{name}, dimension {dim}", size) == size
            for name, shape in shapes.items()
            for dim, size in enumerate(shape)
        )

    def _labelled(self, model: nn.Module) -> dict[str, Layout]:
        found: dict[str, Layout] = {}
        for name, tensor in named_tensors(model).items():
            for dim, layout in enumerate(self._tensors.get(name, tensor.shape)):
                found[f"{name}, dimension {dim}"] = axes.normal(layout)
        return found | {str(place): axes.normal(layout) for place, layout in self.known.items()}

    def _say(self, model: nn.Module) -> Made:
        tensors = named_tensors(model)
        sizes = {f"{n}, dimension {d}": size for n, t in tensors.items() for d, size in enumerate(t.shape)}
        values: dict[str, Any] = dict(kept_tensors(model))
        for name, module in list_modules(model):
            held = vars(module)
            found = {key: value for key, value in held.items() if type(value) is float}
            found |= {key: held["_buffers"][key] for key in held["_non_persistent_buffers_set"]}
            values |= {f"{name}.{key}".lstrip("."): value for key, value in found.items()}
        for place in self.known:
            try:
                sizes[str(place)] = get_integer(model.get_submodule(place.module), place.path)
            except (AttributeError, LookupError):
                continue
        return Made(sizes, values)

    def _make(self, integers: Mapping[Path, int]) -> Made | None:
        """What the model is with other integers; None if its class refuses them."""
        try:
            return self._say(self.maker.make(self.added | dict(integers)))
        except Exception:  # whatever a constructor raises
            return None

    def misfits(self, integers: Mapping[Path, int], widths: Mapping[str, int]) -> list[str]:
        """List what would be other than in the small model if the model were made from these integers.

        Args:
            integers: The integers that are others.
            widths: The number of units of each axis.

        Returns:
            What it is called; empty if all agrees.
        """
        made = self._make(integers)
        if made is None:
            return ["the class of the model, which takes no such sizes"]
        return self._other_values(made) + self._other_sizes(made, widths)

    def _other_sizes(self, made: Made, widths: Mapping[str, int]) -> list[str]:
        """What has another size than at these widths."""
        expected = {
            label: layout if isinstance(layout, int) else axes.size(layout, widths)
            for label, layout in self._layouts.items()
        }
        names = dict.fromkeys([*expected, *made.sizes])
        return [label for label in names if made.sizes.get(label) != expected.get(label)]

    def _other_values(self, made: Made) -> list[str]:
        names = made.values.keys() | self.base.values.keys()
        return sorted(n for n in names if not _equal(made.values.get(n), self.base.values.get(n)))

    def attempt(self, fields: Mapping[Path, int], kept: int, parts: int) -> Trial | None:
        """Make `kept` of `parts` of some integers; None if the class refuses that."""
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
        """The widths of the axes, each whole or at the share, by what the made model says; whole if that is open."""
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


def config_ties(config: Config) -> Ties:
    """Find the axes that a config can make smaller.

    Args:
        config: The config.

    Returns:
        The ties, each with the integers that say it, and the axes that stay whole, with the reason.
    """
    ties: list[Tie] = []
    reasons: dict[str, str] = {}
    fields = config.fields | config.added
    tried = {path: config.attempt({path: value}, value // 2, value) for path, value in fields.items()}
    single = {
        path: trial
        for path, trial in tried.items()
        if trial is None or (trial.complete and (trial.axes or trial.wrong))
    }
    for path, trial in sorted(
        single.items(), key=lambda each: len(each[1].wrong) if each[1] else len(fields)
    ):
        found = _completed(config, fields, single, path)
        if found is not None:
            _accept(config, ties, found, reasons)
        elif trial is not None:
            why = f"{'.'.join(map(str, path))} says its size, and changes {trial.wrong[0]} as well"
            reasons |= {name: why for name in trial.touches if name in config.named and name not in reasons}
    tied = {name for tie in ties for name in tie.axes}
    usual = "no integer of the model's config says its size alone"
    held = {name: reasons.get(name, usual) for name in config.named if name not in tied}
    return Ties(tuple(ties), held, config.added if ties else {})


def _completed(
    config: Config, fields: Mapping[Path, int], single: Mapping[Path, Trial | None], first: Path
) -> Tie | None:
    """The tie of an integer, with as few others as it needs; None if there is none."""
    chosen, trial = [first], single[first]
    while trial is None or trial.wrong:
        best: tuple[Path, Trial] | None = None
        for path, other in single.items():
            apart = other is not None and trial is not None and not other.touches & trial.touches
            parts = common_parts(fields[each] for each in (*chosen, path))
            if path in chosen or apart or parts < 2 or len(chosen) == _MOST_FIELDS:
                continue
            both = config.attempt({each: fields[each] for each in (*chosen, path)}, parts // 2, parts)
            if both is not None and (best is None or len(both.wrong) < len(best[1].wrong)):
                best = path, both
        if best is None or (trial is not None and len(best[1].wrong) >= len(trial.wrong)):
            return None
        chosen.append(best[0])
        trial = best[1]
    return _with_parts(config, {path: fields[path] for path in chosen}, trial.axes)


def _with_parts(config: Config, fields: Mapping[Path, int], names: tuple[str, ...]) -> Tie | None:
    """A tie in the finest steps with which the model holds what was saved.

    A size that its class refuses is no reason for coarser steps: it may be taken beside other sizes (a width that has to
    be a multiple of the number of heads), which `Config.misfits` finds out.
    """
    whole = common_parts([*fields.values(), *(config.named[name].size for name in names)])
    for parts in sorted((n for n in range(2, whole + 1) if names and whole % n == 0), reverse=True):
        trials = [config.attempt(fields, kept, parts) for kept in {parts - 1, max(1, parts // 2)}]
        if all(trial is None or (not trial.wrong and trial.axes == names) for trial in trials):
            return Tie(names, parts, dict(fields))
    return None


def _accept(config: Config, ties: list[Tie], new: Tie, reasons: dict[str, str]) -> None:
    """Add a tie if it goes together with those that there are."""
    if any(set(new.axes) & set(tie.axes) for tie in ties):
        return
    sizes = {name: axis.size for name, axis in config.named.items()}
    together = Ties((*ties, new))
    widths = sizes | {
        name: sizes[name] // tie.parts * max(1, tie.parts // 2) for tie in together.tied for name in tie.axes
    }
    wrong = config.misfits(together.fields(sizes, widths), widths)
    if wrong:
        reasons |= dict.fromkeys(new.axes, f"with other axes it changes {wrong[0]}")
    else:
        ties.append(new)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and (one.is_meta or other.is_meta or torch.equal(one, other))
    return type(one) is type(other) and one == other


Read = set[tuple[type, str]]  # attributes of classes


@contextmanager
def reading(kept: Mapping[str, Any]) -> Iterator[tuple[Read, Read]]:
    """Note which attributes of the objects that a model keeps are read in this thread, and which are missed.

    Args:
        kept: The objects.

    Returns:
        A context manager of the attributes that were there, and of those that were not.
    """
    read: Read = set()
    missed: Read = set()
    own = get_ident()
    usual: dict[type, Any] = {}

    def noting(usual: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        def get(owner: Any, name: str) -> Any:
            try:
                value = usual(owner, name)
            except AttributeError:
                if get_ident() == own:
                    missed.add((type(owner), name))
                raise
            if get_ident() == own and (value is None or type(value) is int):
                held = usual(owner, "__dict__")  # a name may stand for another
                names = [name] if name in held else [key for key in held if held[key] is value]
                read.update((type(owner), each) for each in names)
            return value

        return get

    for _, each in _objects(kept):
        kind = type(each)
        if kind not in usual and not isinstance(each, (dict, list, tuple)):
            usual[kind] = vars(kind).get("__getattribute__")
            kind.__getattribute__ = noting(kind.__getattribute__)
    try:
        yield read, missed
    finally:
        for kind, before in usual.items():
            if before is None:
                del kind.__getattribute__
            else:
                kind.__getattribute__ = before


def _objects(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The objects, dicts, lists and tuples in what a model keeps, each with the steps to it."""
    if isinstance(value, (str, nn.Module, torch.Tensor, type)) or callable(value) or len(path) > _MOST_FIELDS:
        return
    held = _members(value)
    if held is not None:
        if path:
            yield path, value
        for key, item in held.items():
            yield from _objects(item, (*path, key))


def _members(value: Any) -> dict[Any, Any] | None:
    """The items of a container, or the attributes of an object; None for others."""
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if isinstance(key, str) and "." not in key}
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    held = getattr(value, "__dict__", None)
    return held if isinstance(held, dict) else None


def _integers(kept: Mapping[str, Any], read: Read) -> Iterator[tuple[Path, int]]:
    """The integers from 2 in what a model keeps, of those objects whose attributes are watched the ones that are read."""
    for path, owner in [((), dict(kept)), *_objects(kept)]:
        for key, value in (_members(owner) or {}).items():
            watched = not isinstance(owner, (dict, list, tuple))
            if type(value) is int and value > 1 and (not watched or (type(owner), key) in read):
                yield (*path, key), value


def _unsaid(
    model: nn.Module, kept: Mapping[str, Any], read: Read, missed: Read
) -> dict[Path, tuple[int, ...]]:
    """Integers that a config may state and does not, with the values that they may have.

    Its class asks for them. They are not there, and modules keep them by that name; or they are None, and some dimension
    is as large.
    """
    found: dict[Path, tuple[int, ...]] = {}
    for path, owner in _objects(kept):
        for name in sorted(name for kind, name in missed if kind is type(owner)):
            values = {vars(module).get(name) for _, module in list_modules(model) if name in vars(module)}
            found[*path, name] = tuple(v for v in values if type(v) is int and v > 1)
        for name, value in (_members(owner) or {}).items():
            if value is None and (type(owner), name) in read:
                sizes = {size for tensor in named_tensors(model).values() for size in tensor.shape}
                found[*path, name] = tuple(sorted(size for size in sizes if size > 1))
    return found
