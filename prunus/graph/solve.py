"""Which integers of a model follow which layouts, from what the operators of one pass were given.

Each integer that an operator took is known twice: as the size of a layout, which its rule states, and as a term (see
sizes.py). The two must agree at all widths. So a place that alone stands in a term takes the layout; where everything
in a term is known, it is compared at other widths, and where it disagrees, the dimensions are unified; what cannot be
is fixed. Nothing is guessed. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any, NamedTuple

from prunus.graph import axes
from prunus.graph.axes import Axis, Layout, Product, Sum
from prunus.graph.op import Op
from prunus.graph.sizes import Event, Journal, Made, Place, Term, ends, evaluate


class Claim(NamedTuple):
    """A statement that a term is the size of a layout, because of an operation."""

    layout: Layout
    term: Term
    why: Any

    def __str__(self) -> str:
        return f"{self.why} uses the integer {axes.size(self.layout)}, {origin(self.term)}"


def origin(term: Term) -> str:
    """Words for where an integer comes from."""
    places = [str(end) for end in ends(term) if isinstance(end, Place)]
    if isinstance(term, Place):
        return f"which is {term}"
    if places:
        return f"computed from {', '.join(dict.fromkeys(places))}"
    return "written in the code" if isinstance(term, int) else "computed from a shape"


def claims(ops: Iterable[Op]) -> list[Claim]:
    """List the claims of operations about the integers that they were given."""
    return [
        Claim(layout, op.terms[place, element], op)
        for op in ops
        for layout, place, element in op.follows
        if (place, element) in op.terms
    ]


class Solver:
    """Finds the layouts of places; unifies and fixes axes on the way.

    Args:
        known: Layouts of places from earlier passes; added to.
    """

    def __init__(self, known: dict[Place, Layout]):
        self.known = known

    def solve(self, stated: list[Claim], journal: Journal) -> None:
        """Find the layouts of the places in some claims, and make all claims hold.

        Args:
            stated: What operators say.
            journal: The comparisons. They decide which way the code takes, so their answers must stay.
        """
        open_ = [claim for claim in stated if not self._literal(claim)]
        open_.sort(key=lambda claim: isinstance(claim.term, Made))  # plain places first
        while open_:
            left = [claim for claim in open_ if not self._settle(claim)]
            if len(left) == len(open_):  # two unknown places in each
                self._choose(left)
            open_ = left
        for event in journal.equal:
            self._compare(event)
        for event, holds in journal.ordered.items():
            self._order(event, holds)

    def _choose(self, claims: list[Claim]) -> None:
        """Let a place follow that alone can while the others of its claim stay; without one, all of a claim stay."""
        for claim in claims:
            term, unknown = claim.term, self._unknown(claim.term)
            each = {place: self._solved(term, claim.layout, place) for place in unknown}
            able = {place: layout for place, layout in each.items() if layout is not None}
            if len(able) == 1:
                self.known |= able
                return
        self.known |= {place: place.value for place in self._unknown(claims[0].term)}

    def _literal(self, claim: Claim) -> bool:
        if isinstance(claim.term, int):
            axes.fix(claim.layout, claim)
        return isinstance(claim.term, int)

    def _unknown(self, term: Term) -> set[Place]:
        return {end for end in ends(term) if isinstance(end, Place) and end not in self.known}

    def solution(self, claim: Claim) -> tuple[Place, Layout] | None:
        """The one unknown place of a claim with its layout; None if there is not one, or the claim does not say."""
        unknown = self._unknown(claim.term)
        if len(unknown) != 1:
            return None
        place = unknown.pop()
        found = self._solved(claim.term, claim.layout, place)
        return None if found is None else (place, found)

    def _settle(self, claim: Claim) -> bool:
        """Solve a claim for its unknown place, or check it if there is none; whether that was possible."""
        unknown = self._unknown(claim.term)
        if len(unknown) > 1:
            return False
        for place in unknown:
            found = self._solved(claim.term, claim.layout, place)
            self.known[place] = place.value if found is None else found
        self._hold(claim)
        return True

    def _solved(self, term: Term, layout: Layout, place: Place) -> Layout | None:
        """The layout of `place`, if `term` is as long as `layout`; None if that does not say."""
        if term == place:
            return layout
        if not isinstance(term, Made):
            return None
        first = place in ends(term.left)
        inner, other = (term.left, term.right) if first else (term.right, term.left)
        known = None if place in ends(other) else self.layout(other)
        rest = None if known is None else _inverse(term.sign, layout, known, first)
        return None if rest is None else self._solved(inner, rest, place)

    def layout(self, term: Term) -> Layout | None:
        """A layout as long as `term`; None if there is no simple one. Unknown places stay as they are."""
        if isinstance(term, Place):
            return self.known.get(term, term.value)
        if not isinstance(term, Made):
            return term
        left, right = self.layout(term.left), self.layout(term.right)
        if left is None or right is None:
            return None
        if isinstance(left, int) and isinstance(right, int):
            return evaluate(Made(term.sign, left, right), int) if right or term.sign not in "//%" else None
        return _result(term.sign, left, right)

    def _hold(self, claim: Claim) -> None:
        """Make a claim hold in which everything is known."""
        if self._agrees(claim):
            return
        layout = self.layout(claim.term)
        if layout is not None and axes.size(layout) == axes.size(claim.layout):
            axes.unify(claim.layout, layout, claim)
            if self._agrees(claim):
                return
        axes.fix(claim.layout, claim)
        self.fix(claim.term, claim)

    def fix(self, term: Term, why: Any) -> None:
        """Let the value of a term stay, and with it the places that nothing else has given a layout."""
        self.known |= {place: place.value for place in self._unknown(term)}
        layout = self.layout(term)
        for each in self._layouts(term) if layout is None else [layout]:
            axes.fix(each, why)

    def _agrees(self, claim: Claim) -> bool:
        """Whether both sides of a claim are equal at other widths, too."""

        def value(end: Layout | Place) -> int:
            return _length(self.known.get(end, end.value) if isinstance(end, Place) else end, widths)

        for widths in ({}, dict.fromkeys(_leaves(claim.layout, *self._layouts(claim.term)), 1)):
            try:
                if evaluate(claim.term, value) != _length(claim.layout, widths):
                    return False
            except ZeroDivisionError:
                return False
        return True

    def _layouts(self, term: Term) -> list[Layout]:
        return [self._of(end) for end in ends(term)]

    def _of(self, end: Any) -> Layout:
        """The layout of an end of a term; 0 for an unknown place."""
        return self.known.get(end, 0) if isinstance(end, Place) else end

    def _compare(self, event: Event) -> None:
        """Let a comparison of an attribute hold on, because the code takes another way where it does not."""
        term, other = event.term, event.other
        if not any(isinstance(end, Place) for side in (term, other) for end in ends(side)):
            return  # two shapes: whether a table of results has an entry, most often
        why = f"a comparison in {event.module or 'the model itself'}"
        unknown = self._unknown(term), self._unknown(other)
        if isinstance(other, int):
            if not unknown[0] and (layout := self.layout(term)) is not None:
                axes.fix(layout, f"{why} with {other}")
        elif not unknown[1] and (layout := self.layout(other)) is not None:
            self._settle(Claim(layout, term, why))
        elif not unknown[0] and (layout := self.layout(term)) is not None:
            self._settle(Claim(layout, other, why))

    def _order(self, event: Event, holds: Callable[[int, int], bool]) -> None:
        """Let an axis stay that cannot be one smaller without another answer to `n > 1`, or a like question."""
        layout = self.layout(event.term)
        free = () if layout is None else tuple(dict.fromkeys(axes.leaves(layout)))
        widths = {axis: axis.size for axis in free}
        for axis in free:
            smaller = _length(layout or 0, widths | {axis: axis.size - 1})
            if holds(smaller, event.other) is not holds(_length(layout or 0, widths), event.other):
                axes.fix(axis, f"a comparison in {event.module or 'the model itself'} with {event.other}")


def _inverse(sign: str, whole: Layout, known: Layout, first: bool) -> Layout | None:
    """x, given that `x sign known` (or `known sign x`, unless `first`) is as long as `whole`."""
    if sign == "+":
        return _without(whole, known)
    if sign == "*":
        return _divided(whole, known)
    if sign == "-":
        return axes.total(whole, known) if first else _without(known, whole)
    if sign == "//":
        return axes.nest(known, whole) if first else _divided(known, whole)
    return None


def _result(sign: str, left: Layout, right: Layout) -> Layout | None:
    if sign == "+":
        return axes.total(left, right)
    if sign == "*":
        return axes.nest(left, right)
    if sign == "-":
        return _without(left, right)
    return _divided(left, right) if sign == "//" else None


def _without(whole: Layout, part: Layout) -> Layout | None:
    """A layout as long as `whole` without `part`; None if it has no such part at an end."""
    whole, part = axes.normal(whole), axes.normal(part)
    if isinstance(whole, int) and isinstance(part, int):
        return whole - part if part <= whole else None
    if whole == part:
        return 0
    if (
        isinstance(whole, Product)
        and axes.nest(*whole.factors[1:]) == part
        and isinstance(whole.factors[0], int)
    ):
        return axes.nest(whole.factors[0] - 1, part)
    pieces = list(whole.parts) if isinstance(whole, Sum) else [whole]
    gone = list(part.parts) if isinstance(part, Sum) else [part]
    if pieces[: len(gone)] == gone:
        return axes.total(*pieces[len(gone) :])
    if pieces[-len(gone) :] == gone:
        return axes.total(*pieces[: -len(gone)])
    for i, piece in enumerate(pieces):
        if isinstance(piece, int) and isinstance(part, int) and piece >= part:
            return axes.total(*pieces[:i], piece - part, *pieces[i + 1 :])
    return None


def _divided(whole: Layout, part: Layout) -> Layout | None:
    """A layout as long as `whole` divided by `part`; None if `part` is none of its factors."""
    whole, part = axes.normal(whole), axes.normal(part)
    factors = list(whole.factors) if isinstance(whole, Product) else [whole]
    for gone in part.factors if isinstance(part, Product) else (part,):
        if gone == 1:
            continue
        for i, factor in enumerate(factors):
            if factor == gone:
                factors[i] = 1
                break
            if isinstance(factor, int) and isinstance(gone, int) and gone and factor % gone == 0:
                factors[i] = factor // gone
                break
        else:
            return None
    return axes.nest(*factors)


def _leaves(*layouts: Layout) -> list[Axis]:
    return [axis for layout in layouts for axis in axes.leaves(layout)]


def _length(layout: Layout, widths: dict[Axis, int]) -> int:
    """The length of a layout at other widths, no two alike; axes that are not in `widths` get one."""
    layout = axes.normal(layout)
    if isinstance(layout, Sum):
        return sum(_length(part, widths) for part in layout.parts)
    if isinstance(layout, Product):
        return prod(_length(factor, widths) for factor in layout.factors)
    if isinstance(layout, Axis):
        return widths.setdefault(layout, layout.size + 7 + 13 * len(widths))
    return layout
