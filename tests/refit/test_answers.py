"""Curves in the currency of the answer, where it is known what they have to be."""

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import UserError
from prunus.refit import Moments, in_answers


class Branches(nn.Module):
    """Two layers of eight units, of which the answer has one part whole and the other a hundredth."""

    def __init__(self):
        super().__init__()
        self.a, self.read_a = nn.Linear(5, 8), nn.Linear(8, 3)
        self.b, self.read_b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.read_a(self.a(x).relu()) + 0.01 * self.read_b(self.b(x).relu())


def measured(model, x, batches=None):
    graph = prunus.trace(model, x[:1])
    moments = Moments(model, graph, [x])
    curves = moments.curves(1e-6)
    return curves, in_answers(curves, moments, model, graph, [x] if batches is None else batches)


def test_the_last_layer_loses_what_the_answer_loses():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(200, 5)
    of_layers, of_answers = (each.axes["0"] for each in measured(model, x))
    assert of_answers.order == of_layers.order
    assert torch.allclose(of_answers.losses, of_layers.losses, rtol=0.02)


def test_an_axis_counts_as_much_as_the_answer_depends_on_it():
    torch.manual_seed(0)
    of_layers, of_answers = measured(Branches(), torch.randn(200, 5))
    for units in (2, 4, 6):
        kinds = [each.axes[name].losses[units] for each in (of_layers, of_answers) for name in ("b", "a")]
        assert kinds[0] / kinds[1] > 0.05 and kinds[2] / kinds[3] < 0.005


def test_the_model_stays_and_no_batch_is_refused():
    torch.manual_seed(0)
    model, x = Branches().train(), torch.randn(20, 5)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured(model, x)
    assert model.training and all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    with pytest.raises(UserError, match="at least one batch"):
        measured(model, x, [])
