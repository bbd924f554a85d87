"""Random numbers of a forward pass, drawn once and given to two models by their places.

The reference of a proof draws them at full size. The small model makes each draw again, at full size and from the
same seed, with its own numbers at their places, and takes the part that stays. So an operator whose result depends
on data too (a Bernoulli number with a computed chance) shows a wrong chance, and no operator needs a rule of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunus.errors import PruningError
from prunus.graph.axes import Layout
from prunus.graph.op import dims_of, tensors_in
from prunus.graph.operators import Args, Kwargs, argument, name_of
from prunus.graph.places import Places


class Draw:
    """One random operation of a reference run: how to make its numbers again, and what lies where in them.

    Args:
        func: The operator.
        args: Its arguments by position.
        kwargs: Its arguments by keyword.
        seed: The state of torch's generators before it ran.
    """

    def __init__(self, func: Any, args: Args, kwargs: Kwargs, seed: int):
        self.func, self.seed = func, seed
        self.dims = [dims_of(t) for t in tensors_in(args) + tensors_in(kwargs.values())]
        self.args, self.kwargs = tree_map_only(torch.Tensor, lambda t: t.detach().clone(), (args, kwargs))
        self.outs: list[list[Layout] | None] = []  # as its rule says, once it has run

    def repeat(self, args: Args, kwargs: Kwargs, places: Places) -> Any:
        """Run it for the small model: at full size, its arguments at their places; then take the part that stays.

        Raises PruningError if the small model draws numbers of another shape.
        """
        full, small = _numbers(self.args, self.kwargs), _numbers(args, kwargs)
        given = iter([places.put(*each) for each in zip(small, self.dims, full, strict=True)])
        own = self.func(*args, **kwargs)  # for its shape, and because an operator in place returns its input
        seed_all(self.seed)
        again = tree_map_only(torch.Tensor, lambda _: next(given), (self.args, self.kwargs))
        drawn = self.func(*again[0], **again[1])
        outs = self.outs + [None] * len(_list(drawn))
        for mine, whole, dims in zip(_list(own), _list(drawn), outs, strict=False):
            part = places.cut(whole, dims or ())
            if part.shape != mine.shape:
                raise PruningError(
                    f"the small model draws random numbers of shape {tuple(mine.shape)} in "
                    f"{name_of(self.func)}, but the original's, cut, are of shape {tuple(part.shape)}."
                )
            mine.copy_(part)
        return own


class Draws:
    """The random operations of a reference run, in order."""

    def __init__(self):
        self.made: list[Draw] = []

    def begin(self, func: Any, args: Args, kwargs: Kwargs) -> tuple[Draw | None, Kwargs]:
        """Prepare an operation: if it is random, remember and seed it. Returns it, and its arguments by keyword."""
        if not _is_random(func, args, kwargs):
            return None, kwargs
        kwargs = _without_generator(kwargs)
        draw = Draw(func, args, kwargs, len(self.made))
        self.made.append(draw)
        seed_all(draw.seed)
        return draw, kwargs


class SameDraws(TorchDispatchMode):
    """Gives the random operations of a small model the numbers that the reference drew for its units.

    Args:
        draws: Those of the reference, in order.
        places: The places that stay.
    """

    def __init__(self, draws: Draws, places: Places):
        super().__init__()
        self.draws, self.places, self.at = draws.made, places, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        kwargs = kwargs or {}
        if not _is_random(func, args, kwargs):
            return func(*args, **kwargs)
        draw = self.draws[self.at] if self.at < len(self.draws) else None
        if draw is None or draw.func is not func:
            expected = "nothing more" if draw is None else name_of(draw.func)
            raise PruningError(
                f"the small model draws other random numbers than the original: its number {self.at + 1} is "
                f"{name_of(func)}, where the original draws {expected}."
            )
        self.at += 1
        return draw.repeat(args, _without_generator(kwargs), self.places)

    def finish(self) -> None:
        """Check that no draw is left. Raises PruningError otherwise."""
        if self.at < len(self.draws):
            raise PruningError(
                f"the small model draws random numbers {self.at} times, the original {len(self.draws)} times; the "
                f"first that it leaves out is {name_of(self.draws[self.at].func)}."
            )


def seed_all(seed: int) -> None:
    """Seed torch's generators; torch.manual_seed also notes the stack for devices that are not in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@cache
def _may_draw(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _is_random(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Whether an operator draws random numbers; fused attention does only with a dropout."""
    return _may_draw(func) and argument(func, "dropout_p", args, kwargs, default=1.0) > 0


def _without_generator(kwargs: Kwargs) -> Kwargs:
    """The arguments with torch's own generator in the place of the user's, which cannot be copied."""
    return {**kwargs, "generator": None} if kwargs.get("generator") is not None else kwargs


def _numbers(args: Args, kwargs: Kwargs) -> list[torch.Tensor]:
    return tensors_in(args) + tensors_in(kwargs.values())


def _list(out: Any) -> Sequence[Any]:
    return out if isinstance(out, (tuple, list)) else (out,)
