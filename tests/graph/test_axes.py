"""The algebra alone: what unifying, cutting and reshaping do to layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.graph import Axis, axes, reshaping
from prunus.graph.axes import Product, Sum


def named(size, name):
    return Axis(size, name)


def test_merged_axes_are_one():
    a, b = named(4, "a"), named(4, "b")
    axes.unify(a, b, "add")
    assert axes.normal(a) is axes.normal(b)
    assert "add" in axes.normal(a).links


def test_meeting_a_fixed_size_fixes_with_the_reason():
    a = named(4, "a")
    axes.unify(a, 4, "added to the input")
    assert axes.normal(a) == 4 and axes.root(a).fixed == "added to the input"


def test_an_axis_met_by_heads_becomes_heads():
    width, heads, features = named(12, "w"), named(3, "h"), named(4, "d")
    axes.unify(width, Product((heads, features)), "view")
    assert axes.positions(width, {"h": [0, 2]}).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert axes.positions(width, {"d": [1]}).tolist() == [1, 5, 9]
    assert axes.size(width, {"h": 2, "d": 3}) == 6


def test_sums_are_cut_at_common_points():
    a, b, c, d = named(2, "a"), named(4, "b"), named(3, "c"), named(3, "d")
    axes.unify(Sum((a, b)), Sum((c, d)), "add")
    sizes = [axis.size for axis in axes.leaves(Sum((a, b)))]
    assert sizes == [2, 1, 3] or sizes == [2, 3]  # the middle piece has one unit, so it cannot shrink
    assert list(axes.leaves(Sum((a, b)))) == list(axes.leaves(Sum((c, d))))


def test_products_of_other_factors_are_refined():
    a, b = Product((named(6, "a"), named(4, "b"))), Product((named(3, "c"), named(8, "d")))
    axes.unify(a, b, "view")
    assert [axis.size for axis in axes.leaves(a)] == [3, 2, 4]
    assert list(axes.leaves(a)) == list(axes.leaves(b))


def test_what_cannot_be_refined_is_fixed():
    a, b = Product((named(4, "a"), named(6, "b"))), Product((named(6, "c"), named(4, "d")))
    axes.unify(a, b, "view")
    assert axes.normal(a) == axes.normal(b) == 24


def test_two_equal_parts_are_a_product():
    a = named(4, "a")
    assert axes.normal(Sum((a, a))) == Product((2, a))


def test_units_lists_the_positions_of_each_unit():
    h, d = named(2, "h"), named(3, "d")
    found = axes.units(Product((h, d)))
    assert found[d].tolist() == [[0, 3], [1, 4], [2, 5]] and found[h].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert axes.units(Sum((d, 2, d)))[d].tolist() == [[0, 5], [1, 6], [2, 7]]


def test_size_takes_tensors_and_gradients():
    h, d = named(2, "h"), named(3, "d")
    widths = {"h": torch.tensor([1.0, 2.0], requires_grad=True), "d": torch.tensor([3.0, 3.0])}
    value = axes.size(Sum((Product((h, d)), 5)), widths)
    assert value.tolist() == [8.0, 11.0]
    value.sum().backward()
    assert widths["h"].grad.tolist() == [3.0, 3.0]


@st.composite
def layouts(draw, depth=2):
    kind = draw(st.sampled_from(["int", "axis", "sum", "product"] if depth else ["int", "axis"]))
    if kind == "int":
        return draw(st.integers(1, 4))
    if kind == "axis":
        return Axis(draw(st.integers(1, 6)))
    parts = tuple(draw(st.lists(layouts(depth - 1), min_size=1, max_size=3)))
    return Sum(parts) if kind == "sum" else Product(parts)


def name_leaves(*found):
    for i, axis in enumerate(dict.fromkeys(a for layout in found for a in axes.leaves(layout))):
        axis.name = str(i)


def random_keep(found, random):
    keep = {}
    for axis in axes.leaves(found):
        keep.setdefault(axis.name, sorted(random.sample(range(axis.size), random.randint(1, axis.size))))
    return keep


@settings(max_examples=300, deadline=None, derandomize=True)
@given(layouts(), st.data(), st.randoms(use_true_random=False))
def test_cutting_and_joining_again_gives_the_same_positions(layout, data, random):
    n = axes.size(layout)
    cut = data.draw(st.integers(0, n))
    head, tail = axes.split(layout, cut, "cut")
    assert axes.size(head) == cut and axes.size(tail) == n - cut
    name_leaves(layout)
    keep = random_keep(layout, random)
    assert torch.equal(axes.positions(Sum((head, tail)), keep), axes.positions(layout, keep))
    widths = {name: len(kept) for name, kept in keep.items()}
    assert axes.size(layout, widths) == len(axes.positions(layout, keep))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(layouts(), st.randoms(use_true_random=False))
def test_unifying_makes_positions_equal_and_is_idempotent(layout, random):
    n = axes.size(layout)
    other = axes.split(Axis(n + 3), n, "cut")[0]
    for inner in (d for d in range(n, 0, -1) if n % d == 0):
        other = Product(axes.factor(other, inner, "view"))
    axes.unify(layout, other, "add")
    name_leaves(layout, other)
    once = repr(axes.normal(layout))
    keep = random_keep(layout, random)
    assert torch.equal(axes.positions(layout, keep), axes.positions(other, keep))
    axes.unify(other, layout, "again")
    assert repr(axes.normal(layout)) == once


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(layouts(1), min_size=1, max_size=3), st.data(), st.randoms(use_true_random=False))
def test_reshape_keeps_every_element_in_its_place(dims, data, random):
    shape = [axes.size(layout) for layout in dims]
    total = torch.Size(shape).numel()
    out, rest = [], total
    while rest > 1:
        n = data.draw(st.sampled_from([d for d in range(2, rest + 1) if rest % d == 0]))
        out.append(n)
        rest //= n
    result = reshaping.reshape(dims, out or [1], "view")
    assert [axes.size(layout) for layout in result] == (out or [1])
    name_leaves(*dims, *result)
    keep = random_keep(Product(tuple(dims)), random)
    x = torch.arange(total).view(shape)
    for d, layout in enumerate(dims):
        x = x.index_select(d, axes.positions(layout, keep))
    y = torch.arange(total).view(out or [1])
    for d, layout in enumerate(result):
        y = y.index_select(d, axes.positions(layout, keep))
    assert torch.equal(x.flatten(), y.flatten())


def test_dimensions_may_be_as_long_as_each_other_with_other_units():
    a, b, c = named(7, "a"), named(7, "b"), named(6, "c")
    axes.match(Sum((Product((a, 2)), 1)), Sum((1, Product((b, 2)))), "split")
    assert axes.normal(a) is axes.normal(b)
    axes.match(Sum((Product((a, 8)), 2)), Sum((2, Product((Sum((1, Product((c, 2)), 1)), 4)))), "split")
    assert list(axes.leaves(a)) == [c]


def test_lengths_that_differ_are_our_mistake():
    with pytest.raises(AssertionError):
        axes.unify(Axis(3), Axis(4), "add")
