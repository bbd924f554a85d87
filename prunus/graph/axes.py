"""The algebra of axes: how dimensions are laid out, and what it means that two are the same.

A *layout* says what one dimension of a tensor is made of. It is one of
    int             a size that never changes (batch, space, classes)
    Axis            a family of dimensions that shrink together
    Sum(parts)      parts one after the other        (concatenation, 64 + 32)
    Product(factors)  row-major nesting, outer first (8 heads x 64 features)
Two dimensions that must be equal are *unified*, like types in type inference: an axis met by an
axis merges with it, an axis met by a sum or product is bound to it, two sums are cut at common
points, two products are refined factor by factor. What cannot be refined is fixed. Nothing here
is searched for and no list of indices travels, so it always ends.

This file knows no operator and no model. Source: ours (design, section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import torch


class Axis:
    """A family of dimensions that must shrink together. `fixed` says why it may not, if so."""

    __slots__ = ("bound", "fixed", "kind", "links", "name", "settled", "size")

    def __init__(self, size: int, name: str = ""):
        self.size = size
        self.name = name
        self.kind = "width"  # or "depth": the one unit of a block, which is in no layout (see blocks.py)
        self.fixed: Any = ""  # why it may not shrink; anything with a str()
        self.bound: Layout | None = None  # what it turned out to be: another axis, a sum, a product
        self.links: list[Any] = []  # why it was unified with others; anything with a str()
        self.settled = False  # whether it may shrink whatever a later pass says (see Passes.as_called)

    def __repr__(self) -> str:
        return f"Axis({self.name or '?'}, {self.size})"


@dataclass(frozen=True, slots=True)
class Sum:
    """Parts one after the other along a dimension."""

    parts: tuple[Layout, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Factors nested row-major in one dimension, the outer first."""

    factors: tuple[Layout, ...]


Layout = int | Axis | Sum | Product


def root(axis: Axis) -> Axis:
    """The axis that stands for `axis` after all merges."""
    top = axis
    while isinstance(top.bound, Axis):
        top = top.bound
    while axis is not top:  # shorten the way for the next time
        axis.bound, axis = top, axis.bound  # pyright: ignore[reportAssignmentType]  # an Axis, until `top`
    return top


def normal(layout: Layout) -> Layout:
    """`layout` with merges followed, fixed axes as ints, nests flattened and adjacent ints joined."""
    if isinstance(layout, int):
        return layout
    if isinstance(layout, Axis):
        axis = root(layout)
        if axis.bound is not None:
            return normal(axis.bound)
        return axis.size if axis.fixed or axis.size <= 1 else axis
    if isinstance(layout, Sum):
        return total(*layout.parts)
    return nest(*layout.factors)


def total(*parts: Layout) -> Layout:
    """The normal form of the concatenation of `parts`."""
    flat: list[Layout] = []
    for part in parts:
        part = normal(part)
        for piece in part.parts if isinstance(part, Sum) else (part,):
            if isinstance(piece, int) and flat and isinstance(flat[-1], int):
                flat[-1] += piece
            elif piece != 0:
                flat.append(piece)
    if not flat:
        return 0
    if len(flat) > 1 and all(piece == flat[0] for piece in flat):
        return nest(len(flat), flat[0])  # one form for A + A and 2 x A
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def nest(*factors: Layout) -> Layout:
    """The normal form of the row-major nesting of `factors`, outer first."""
    flat: list[Layout] = []
    for factor in factors:
        factor = normal(factor)
        for piece in factor.factors if isinstance(factor, Product) else (factor,):
            if isinstance(piece, int) and flat and isinstance(flat[-1], int):
                flat[-1] *= piece
            elif piece != 1:
                flat.append(piece)
    if not flat or 0 in flat:
        return 0 if flat else 1
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def size(layout: Layout, widths: Mapping[str, Any] | None = None) -> Any:
    """The length of `layout` when each axis named in `widths` has that many units.

    Widths may be ints, floats or tensors (batches of candidates): the result is a polynomial in them.
    """
    layout = normal(layout)
    if isinstance(layout, int):
        return layout
    if isinstance(layout, Axis):
        return layout.size if widths is None else widths.get(layout.name, layout.size)
    if isinstance(layout, Sum):
        return sum(size(part, widths) for part in layout.parts)
    return prod(size(factor, widths) for factor in layout.factors)


def leaves(layout: Layout) -> Iterator[Axis]:
    """The axes that may shrink in `layout`, in order; an axis that occurs twice comes twice."""
    layout = normal(layout)
    if isinstance(layout, Axis):
        yield layout
    elif isinstance(layout, Sum):
        for part in layout.parts:
            yield from leaves(part)
    elif isinstance(layout, Product):
        for factor in layout.factors:
            yield from leaves(factor)


def can_shrink(*layouts: Layout) -> bool:
    """Whether some layout has an axis that may shrink."""
    return any(True for layout in layouts for _ in leaves(layout))


def parts(layout: Layout) -> Iterator[Axis]:
    """The axes that a layout is written with, whatever they turned out to be."""
    if isinstance(layout, Axis):
        yield layout
    elif not isinstance(layout, int):
        for part in layout.parts if isinstance(layout, Sum) else layout.factors:
            yield from parts(part)


def ends(layout: Layout) -> Iterator[Axis]:
    """Like `leaves`, but with the fixed axes too: where the reasons are."""
    if isinstance(layout, Axis):
        axis = root(layout)
        if axis.bound is None:
            yield axis
        else:
            yield from ends(axis.bound)
    elif isinstance(layout, Sum):
        for part in layout.parts:
            yield from ends(part)
    elif isinstance(layout, Product):
        for factor in layout.factors:
            yield from ends(factor)


def multiples(layout: Layout, number: int) -> Iterator[tuple[Axis, int]]:
    """For each axis in a layout, the number of whose multiples its size must be, so that the layout's is of `number`.

    Each holds alone, whatever the sizes of the others are.
    """
    layout = normal(layout)
    if isinstance(layout, Axis):
        yield layout, number
    elif isinstance(layout, Sum):
        for part in layout.parts:
            yield from multiples(part, number)
    elif isinstance(layout, Product):
        fixed = prod(factor for factor in layout.factors if isinstance(factor, int))
        for factor in layout.factors:
            yield from multiples(factor, number // gcd(number, fixed))


def positions(layout: Layout, keep: Mapping[str, Sequence[int]]) -> torch.Tensor:
    """The indices along a dimension of this layout that stay, ascending: LongTensor (kept,)."""
    layout = normal(layout)
    if isinstance(layout, int):
        return torch.arange(layout)
    if isinstance(layout, Axis):
        if layout.name not in keep:
            return torch.arange(layout.size)
        return torch.as_tensor(keep[layout.name], dtype=torch.long)
    if isinstance(layout, Sum):
        found, start = [], 0
        for part in layout.parts:
            found.append(start + positions(part, keep))
            start += size(part)
        return torch.cat(found)
    found = torch.zeros(1, dtype=torch.long)
    for factor in layout.factors:
        found = (found[:, None] * size(factor) + positions(factor, keep)).flatten()
    return found


def units(layout: Layout) -> dict[Axis, torch.Tensor]:
    """For each axis in a dimension, the positions of each of its units: LongTensor (axis.size, k)."""
    layout = normal(layout)
    if isinstance(layout, int):
        return {}
    if isinstance(layout, Axis):
        return {layout: torch.arange(layout.size)[:, None]}
    found: dict[Axis, list[torch.Tensor]] = {}
    if isinstance(layout, Sum):
        start = 0
        for part in layout.parts:
            for axis, index in units(part).items():
                found.setdefault(axis, []).append(index + start)
            start += size(part)
    else:
        outer, inner = layout.factors[0], nest(*layout.factors[1:])
        length, repeats = size(inner), size(outer)
        for axis, index in units(outer).items():
            found[axis] = [(index[:, :, None] * length + torch.arange(length)).flatten(1)]
        for axis, index in units(inner).items():
            shifted = torch.arange(repeats)[:, None] * length + index[:, None, :]
            found.setdefault(axis, []).append(shifted.flatten(1))
    return {
        axis: indices[0] if len(indices) == 1 else torch.cat(indices, 1) for axis, indices in found.items()
    }


def fix(layout: Layout, why: Any) -> None:
    """Let no axis of `layout` shrink, because of `why`, except those that are settled."""
    for axis in list(leaves(layout)):
        if not axis.settled:
            axis.fixed = why


def bind(axis: Axis, layout: Layout, why: Any) -> None:
    """`axis`, so far free, turns out to be `layout`."""
    axis.bound = layout
    if isinstance(layout, Axis):
        layout.links += [*axis.links, why]
    else:
        for leaf in leaves(layout):
            leaf.links += [*axis.links, why]


def unify(a: Layout, b: Layout, why: Any) -> None:
    """Let two dimensions be the same. Where they cannot shrink together, fix them because of `why`."""
    if a is b:
        return
    a, b = normal(a), normal(b)
    if a is b or a == b:
        return
    assert size(a) == size(b), f"{why}: {a} is not as long as {b}"
    if isinstance(a, int) or isinstance(b, int):
        fix(b if isinstance(a, int) else a, why)
    elif isinstance(a, Axis):
        # one that has a name keeps it: passes after naming make axes of their own
        bind(*((b, a) if a.name and isinstance(b, Axis) and not b.name else (a, b)), why)
    elif isinstance(b, Axis):
        bind(b, a, why)
    elif isinstance(a, Sum) or isinstance(b, Sum):
        _unify_sums(a, b, why)
    else:
        _unify_products(a, b, why)


def _unify_sums(a: Layout, b: Layout, why: Any) -> None:
    """Cut both at common points and unify piece by piece."""
    while True:
        # a cut may have bound an axis that occurs again later, so normalise anew each time
        a, b = normal(a), normal(b)
        a_parts = a.parts if isinstance(a, Sum) else (a,)
        b_parts = b.parts if isinstance(b, Sum) else (b,)
        if len(a_parts) == len(b_parts) == 1:
            return unify(a, b, why)
        cut = min(size(a_parts[0]), size(b_parts[0]))
        a_head, a = split(a, cut, why)
        b_head, b = split(b, cut, why)
        unify(a_head, b_head, why)


def _unify_products(a: Layout, b: Layout, why: Any) -> None:
    """Refine both to common factors, from the inner end."""
    while isinstance(a, Product) and isinstance(b, Product):
        a_inner, b_inner = size(a.factors[-1]), size(b.factors[-1])
        inner = min(a_inner, b_inner)
        if max(a_inner, b_inner) % inner:
            fix(a, why)
            fix(b, why)
            return
        a, a_factor = factor(a, inner, why)
        b, b_factor = factor(b, inner, why)
        unify(a_factor, b_factor, why)
        a, b = normal(a), normal(b)
    unify(a, b, why)


def match(a: Layout, b: Layout, why: Any) -> None:
    """Let two dimensions be as long as each other, whichever of their units stay; unify them if that is not enough."""
    terms = _polynomial(a)
    terms.subtract(_polynomial(b))
    more = {key: n for key, n in terms.items() if n > 0}
    less = {key: -n for key, n in terms.items() if n < 0}
    for one, others in ((more, less), (less, more)):
        (key, times), *rest = one.items() or [((), 0)]
        if len(key) == 1 and not rest and not any(n % times or key[0] in c for c, n in others.items()):
            unify(key[0], total(*(nest(n // times, *other) for other, n in others.items())), why)
            return
    if more or less:
        unify(a, b, why)


def _polynomial(layout: Layout) -> Counter[tuple[Axis, ...]]:
    """The length of a layout as a sum of products of axes, with how often each product occurs."""
    layout = normal(layout)
    if isinstance(layout, (int, Axis)):
        return Counter({(): layout} if isinstance(layout, int) else {(layout,): 1})
    if isinstance(layout, Sum):
        return sum(map(_polynomial, layout.parts), Counter())
    found: Counter[tuple[Axis, ...]] = Counter({(): 1})
    for factor in map(_polynomial, layout.factors):
        found = sum((Counter({(*a, *b): found[a] * factor[b]}) for a in found for b in factor), Counter())
    return found


def split(layout: Layout, cut: int, why: Any) -> tuple[Layout, Layout]:
    """`layout` as two layouts, the first of length `cut`; binds an axis that is cut to a sum."""
    layout = normal(layout)
    if cut <= 0 or cut >= size(layout):
        return (0, layout) if cut <= 0 else (layout, 0)
    if isinstance(layout, int):
        return cut, layout - cut
    if isinstance(layout, Axis):
        head, tail = Axis(cut), Axis(layout.size - cut)
        bind(layout, Sum((head, tail)), why)
        return head, tail
    if isinstance(layout, Sum):
        before: list[Layout] = []
        for i, part in enumerate(layout.parts):
            if cut < size(part):
                head, tail = split(part, cut, why)
                return total(*before, head), total(tail, *layout.parts[i + 1 :])
            before.append(part)
            cut -= size(part)
        raise AssertionError("cut lies within the sum")
    outer, inner = layout.factors[0], nest(*layout.factors[1:])
    whole, rest = divmod(cut, size(inner))
    head, tail = split(outer, whole, why)
    if not rest:
        return nest(head, inner), nest(tail, inner)
    # the cut goes through one unit of the outer axis: that unit stands alone, its inside is cut
    _, tail = split(tail, 1, why)
    first, second = split(inner, rest, why)
    return total(nest(head, inner), first), total(second, nest(tail, inner))


def factor(layout: Layout, inner: int, why: Any) -> tuple[Layout, Layout]:
    """`layout` as (outer, inner) of a product, the inner of length `inner`, which divides its size.

    Binds an axis to a product; where a product cannot be factored so, fixes it.
    """
    layout = normal(layout)
    n = size(layout)
    if inner == 1 or inner == n:
        return (layout, 1) if inner == 1 else (1, layout)
    if isinstance(layout, Axis):
        outer, rest = Axis(n // inner), Axis(inner)
        bind(layout, Product((outer, rest)), why)
        return outer, rest
    if isinstance(layout, Sum) and all(size(part) % inner == 0 for part in layout.parts):
        pairs = [factor(part, inner, why) for part in layout.parts]
        for _, other in pairs[1:]:
            unify(pairs[0][1], other, why)
        return total(*(outer for outer, _ in pairs)), pairs[0][1]
    if isinstance(layout, Product):
        last = layout.factors[-1]
        last_size = size(last)
        if inner % last_size == 0:
            outer, middle = factor(nest(*layout.factors[:-1]), inner // last_size, why)
            return outer, nest(middle, last)
        if last_size % inner == 0:
            outer, rest = factor(last, inner, why)
            return nest(*layout.factors[:-1], outer), rest
    if isinstance(layout, Sum):
        # parts that do not divide evenly: cut into equal chunks, which are then the same
        chunk, rest = split(layout, inner, why)
        while size(rest):
            other, rest = split(rest, inner, why)
            unify(chunk, other, why)
        return n // inner, normal(chunk)
    fix(layout, why)
    return n // inner, inner
