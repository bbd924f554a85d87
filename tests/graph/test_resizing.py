"""The graph of a small model, from its original's: it costs, scores, cuts and proves as a trace of it would."""

import pytest
import torch

import prunus
from prunus.graph import resized
from tests.lib import nets


@pytest.mark.parametrize("name", nets.NETS)
def test_a_second_cut_by_it_is_the_cut_of_the_original(name):
    model, x = nets.build(name)
    graph = prunus.trace(model, x)
    sizes = {name: axis.size for name, axis in graph.axes.items()}
    first = {name: list(range(size))[: max(1, size - 1)] for name, size in sizes.items()}
    first = graph.check_keep(first)
    small = prunus.shrink(model, graph, first)
    with resized(graph, first) as inner:
        assert prunus.macs(inner) == prunus.macs(prunus.trace(small, x))
        assert prunus.verify(small, inner, {}).holds  # it fits the small model
        scores = prunus.scores.magnitude(small, inner)
        assert {name: len(score) for name, score in scores.items()} == {
            name: axis.size for name, axis in inner.axes.items()
        }
        second = nets.random_keep(inner)
        smaller = prunus.shrink(small, inner, second)
    assert {name: axis.size for name, axis in graph.axes.items()} == sizes
    expected = prunus.shrink(model, graph, both(first, second))
    for got, wanted in zip(smaller.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)  # lengths of weight_norm are computed anew at each cut


def both(first, second):
    """What stays after two cuts, in units of the original."""
    return {name: [units[at] for at in second.get(name, range(len(units)))] for name, units in first.items()}


def test_an_error_in_the_block_leaves_the_graph_as_it_was():
    model, x = nets.build(next(iter(nets.NETS)))
    graph = prunus.trace(model, x)
    sizes = {name: axis.size for name, axis in graph.axes.items()}
    with pytest.raises(ZeroDivisionError), resized(graph, {name: [0] for name in sizes}):
        raise ZeroDivisionError
    assert {name: axis.size for name, axis in graph.axes.items()} == sizes
