"""Recurrent layers and cells: hidden units are tied over gates, layers and directions."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from prunus.graph import tracer
from prunus.graph.skeleton import make_skeleton
from tests.lib.rules import halve

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Series(nn.Module):
    """A layer (5 to 6), a recurrent one (6 to 8), and a layer after it."""

    def __init__(self, kind, lengths=None, **options):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.recurrent, self.lengths = nn.Linear(5, 6), kind(6, 8, **options), lengths
        width = options.get("proj_size", 8) * (2 if options.get("bidirectional") else 1)
        self.down = nn.Linear(width, 3)

    def forward(self, x):
        x = self.up(x).relu()
        if self.lengths is not None:
            lengths = torch.tensor(self.lengths)
            x = pack_padded_sequence(x, lengths, self.recurrent.batch_first, enforce_sorted=False)
        y = self.recurrent(x)[0]
        if self.lengths is not None:
            y, _ = pad_packed_sequence(y, self.recurrent.batch_first)
        return self.down(y)


def check(kind, **options):
    """All weights must have half the rows and columns, and the layer must still take what its size says."""
    _, small = halve(Series(KINDS[kind], **options), torch.randn(2, 4, 5))
    layer, gates = small.recurrent, GATES[kind]
    assert (layer.input_size, layer.hidden_size) == (3, 4) and layer.proj_size == options.get("proj_size", 0) // 2
    for name, weight in layer.named_parameters():
        rows = layer.proj_size if "_hr" in name else gates * layer.hidden_size
        assert weight.shape[0] == rows, name
    assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_units_of_a_recurrent_layer_shrink(kind):
    check(kind, batch_first=True)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_directions_shrink_together(kind):
    check(kind, num_layers=2, bidirectional=True)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_shrink(kind):
    check(kind, lengths=[2, 4], batch_first=True)


def test_a_recurrent_layer_with_rectified_units_shrinks():
    check("RNN", nonlinearity="relu", bias=False)


@pytest.mark.parametrize("more", [{}, {"num_layers": 2, "bidirectional": True}])
def test_projected_units_are_an_axis_of_their_own(more):
    check("LSTM", proj_size=4, **more)


class Steps(nn.Module):
    """A loop over a cell."""

    def __init__(self, kind):
        super().__init__()
        self.up, self.cell, self.down = nn.Linear(5, 6), kind(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(self.up(step).relu(), state)
        return self.down(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_the_units_of_a_cell_shrink(kind):
    graph, small = halve(Steps(kind), torch.randn(2, 4, 5))
    assert (small.cell.input_size, small.cell.hidden_size) == (3, 4)
    assert [graph.role("cell.weight_hh", dim) for dim in (0, 1)] == ["produces", "consumes"]


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_torchs_fused_layer_ties_what_its_single_steps_tie(options):
    """In single precision on the CPU an LSTM is one operator a layer; the proof may meet it there."""
    model, example = Series(nn.LSTM, **options).eval(), torch.randn(2, 4, 5)
    found = []
    for real in (False, True):
        bare = make_skeleton(model, real)
        layouts = tracer.fresh_layouts(bare)
        traced, _ = tracer.run(bare, example, layouts)
        found.append(tied(layouts))
        fused = [op.name for op in traced.ops if op.name == "mkldnn_rnn_layer"]
    assert found[0] == found[1] and (fused or not torch.backends.mkldnn.is_available())


def tied(layouts):
    """Each dimension's axes, numbered as they first occur, and their sizes."""
    numbers = {}
    return {
        (name, dim): [
            (numbers.setdefault(axis, len(numbers)), axis.size) for axis in dict.fromkeys(tracer.axes.leaves(layout))
        ]
        for name, dims in layouts.items()
        for dim, layout in enumerate(dims)
    }
