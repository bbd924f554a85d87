"""Large models are proved with one drawn tensor at a time: with the same error, and little memory."""

import weakref

import pytest
import torch
from torch import nn

import prunus
from prunus import surgery
from prunus.errors import PruningError
from prunus.surgery import proof, sampling
from tests.lib import nets


@pytest.fixture
def one_by_one(monkeypatch):
    return lambda: monkeypatch.setattr(proof, "LARGE_MODEL", 0)


@pytest.mark.parametrize("name", nets.NETS)
def test_the_error_is_the_same_as_with_all_at_once(name, one_by_one):
    model, example = nets.build(name)
    graph = prunus.trace(model, example)
    keep = nets.random_keep(graph)
    small = prunus.shrink(model, graph, keep)
    at_once = surgery.verify(model, graph, keep, small)
    one_by_one()
    assert surgery.verify(model, graph, keep, small).max_abs_error == at_once.max_abs_error


def test_rows_in_another_order_are_noticed(one_by_one):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    graph = prunus.trace(model, torch.randn(2, 6))
    one_by_one()
    keep = {"0": [1, 2, 5, 7], "2": [0, 3, 4]}
    wrong = prunus.shrink(model, graph, keep)
    wrong.forward = lambda x: nn.Sequential.forward(wrong, x.flip(0)).flip(0)
    assert surgery.verify(model, graph, keep, wrong).holds  # each row by itself
    wrong.forward = lambda x: nn.Sequential.forward(wrong, x.flip(1))
    assert not surgery.verify(model, graph, keep, wrong).holds
    small = prunus.shrink(model, graph, keep)
    with torch.no_grad():
        small[2].weight.copy_(small[2].weight.flip(0))
    with pytest.raises(PruningError, match=r"2\.weight"):
        surgery.verify(model, graph, keep, small)


def test_no_more_is_held_than_one_tensor_and_its_part(one_by_one, monkeypatch):
    layers = [layer for _ in range(12) for layer in (nn.Linear(700, 700), nn.ReLU())]
    model = nn.Sequential(*layers)
    graph = prunus.trace(model, torch.randn(1, 700))
    keep = {axis: list(range(0, 700, 2)) for axis in graph.axes}
    alive, most = [], [0]

    def watched(sampler, *args):
        draw = made(sampler, *args)

        def drawn(name):
            tensor = draw(name)
            alive.append((weakref.ref(tensor.untyped_storage()), tensor.nbytes))
            most[0] = max(most[0], sum(size for storage, size in alive if storage() is not None))
            return tensor

        return drawn

    made = sampling.Sampler.draws
    monkeypatch.setattr(sampling.Sampler, "draws", watched)
    one_by_one()
    assert surgery.verify(model, graph, keep).holds
    one = model[0].weight.nbytes
    assert len(alive) >= 4 * 12 and most[0] < 1.3 * one
