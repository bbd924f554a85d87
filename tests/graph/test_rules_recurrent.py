"""Recurrent layers and cells: hidden units are tied over gates, layers and directions."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from prunus.graph import axes, tracer
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
    assert (layer.input_size, layer.hidden_size) == (3, 4) and layer.proj_size == options.get(
        "proj_size", 0
    ) // 2
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


OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}, {"proj_size": 4, "num_layers": 2}]


@pytest.mark.parametrize("options", OPTIONS[:3])  # torch does not fuse projections
def test_torchs_fused_layer_ties_what_its_single_steps_tie(options):
    """In single precision on the CPU an LSTM is one operator a layer; the proof may meet it there."""
    model = Series(nn.LSTM, **options).eval()
    steps, fused = tied(model, real=False), tied(model, real=True)
    assert steps == fused


class OnGpu(Series):
    """Calls the operator that an LSTM is on a GPU."""

    def forward(self, x):
        layer = self.recurrent
        count = layer.num_layers * (2 if layer.bidirectional else 1)
        state, cell = (
            x.new_zeros(count, x.shape[1], n)
            for n in (layer.proj_size or layer.hidden_size, layer.hidden_size)
        )
        rest = (layer.num_layers, False, 0.0, False, layer.bidirectional, [], None)
        sizes = (layer.hidden_size, layer.proj_size)
        each = len(layer.all_weights[0])
        weights = layer._flat_weights
        x = self.up(x).relu()
        return self.down(torch.ops.aten._cudnn_rnn(x, weights, each, None, state, cell, 2, *sizes, *rest)[0])


@pytest.mark.parametrize("options", OPTIONS)
def test_the_operator_of_gpus_ties_what_its_single_steps_tie(options):
    assert tied(Series(nn.LSTM, **options)) == tied(OnGpu(nn.LSTM, **options))


class StepsOnGpu(Steps):
    """Calls the operator that the rest of an LSTM's cell is on a GPU, after its products."""

    def forward(self, x):
        h = c = x.new_zeros(len(x), self.cell.hidden_size)
        for step in x.unbind(1):
            given, back = self.up(step).relu() @ self.cell.weight_ih.t(), h @ self.cell.weight_hh.t()
            biases = self.cell.bias_ih, self.cell.bias_hh
            h, c, _ = torch.ops.aten._thnn_fused_lstm_cell(given, back, c, *biases)
        return self.down(h)


def test_the_operator_of_gpus_ties_what_a_cell_ties():
    assert tied(Steps(nn.LSTMCell)) == tied(StepsOnGpu(nn.LSTMCell))


def tied(model, real=False):
    """Each dimension's axes, numbered as they first occur, and their sizes."""
    bare = make_skeleton(model, real)
    layouts = tracer.fresh_layouts(bare)
    tracer.run(bare, torch.randn(2, 4, 5), layouts)
    numbers = {}
    return {
        (name, dim): [
            (numbers.setdefault(axis, len(numbers)), axis.size) for axis in dict.fromkeys(axes.leaves(layout))
        ]
        for name, dims in layouts.items()
        for dim, layout in enumerate(dims)
    }
