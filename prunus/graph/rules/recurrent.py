"""Rules for recurrent layers and cells that torch computes by one operator.

On the meta device they come as the products and activations of each step, for which there are other rules; these
are for the pass over real tensors. The weights of all gates stand one after the other: (gates x H, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunus.graph import axes
from prunus.graph.axes import Layout
from prunus.graph.op import CONSUMES, PRODUCES, SHIFTS, Op
from prunus.graph.rules.registry import rule


def _units(op: Op, gates: Layout, hidden: int) -> Layout:
    """The hidden units, of which each gate has one."""
    number, units = axes.factor(gates, hidden, op)
    op.fix(number)
    return units


def _layer(
    op: Op, x: Sequence[Layout], weights: Sequence[torch.Tensor], state: Layout, cell: Layout | None = None
) -> tuple[Layout, Layout]:
    """Unify the weights of one layer in one direction with what it reads and with its states.

    weights: (gates x H, C), (gates x H, R), biases (gates x H), and a projection (R, H) if there is one, otherwise
    R is H. Returns R and H.
    """
    own, back, *others = weights
    gates = op.dims(own)[0]
    units = _units(op, gates, axes.size(cell if cell is not None else state))
    given = units
    for tensor, read in ((own, x[-1]), (back, state)):
        op.unify(op.dims(tensor)[0], gates)
        op.unify(op.dims(tensor)[1], read)
        op.role(tensor, 0, PRODUCES)
        op.role(tensor, 1, CONSUMES)
        op.count(1, *x[:-1], gates, read, over=read)
    for tensor in others:
        if tensor.dim() == 1:
            op.unify(op.dims(tensor)[0], gates)
            op.role(tensor, 0, SHIFTS)
        else:
            given, inner = op.dims(tensor)
            op.unify(inner, units)
            op.count(1, *x[:-1], given, inner, over=inner)
            op.role(tensor, 0, PRODUCES)
            op.role(tensor, 1, CONSUMES)
    op.unify(given, state)
    if cell is not None:
        op.unify(units, cell)
    return given, units


@rule("mkldnn_rnn_layer")
def layer(op: Op, x: torch.Tensor, *args: Any) -> Any:
    """One layer in one direction: x (T, N, C), its states (N, H)."""
    *weights, state, cell = args[:6]
    weights = weights if op.argument("has_biases") else weights[:2]
    units, _ = _layer(op, op.dims(x), weights, op.dims(state)[-1], op.dims(cell)[-1])
    op.follow(units, "hidden_size")
    result, *states, _ = op.sizes()
    return (*([*sizes[:-1], units] for sizes in (result, *states)), None)


@rule("_cudnn_rnn miopen_rnn")
def layers(op: Op, x: torch.Tensor, weights: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    """All layers and directions: x (T, N, C), its states (layers x directions, N, H)."""
    state, cell = args[2:4]
    directions = 2 if op.argument("bidirectional") else 1
    each = op.argument("weight_stride0")
    (*steps, read), made = op.dims(x), []
    units, given = op.dims(cell if cell is not None else state)[-1], op.dims(state)[-1]
    for first in range(0, len(weights), each):
        last, _ = _layer(op, [*steps, read], weights[first : first + each], given, units)
        made.append(last)
        if len(made) == directions:
            read, made = axes.total(*made), []
    op.follow(units, "hidden_size")
    result, state_sizes, cell_sizes, *others = op.sizes()
    cells = None if cell is None else [*cell_sizes[:-1], units]
    return [*result[:-1], read], [*state_sizes[:-1], given], cells, *(None for _ in others)


@rule("_thnn_fused_lstm_cell _thnn_fused_gru_cell")
def cell(op: Op, x: torch.Tensor, back: torch.Tensor, state: torch.Tensor, *biases: Any) -> Any:
    """x and `back` (N, gates x H), each already multiplied by its weights; states (N, H)."""
    gates, units = op.dims(x)[-1], op.dims(state)[-1]
    for tensor in (back, *(bias for bias in biases if bias is not None)):
        op.unify(op.dims(tensor)[-1], gates)
    op.unify(_units(op, gates, axes.size(units)), units)
    *results, _ = op.sizes()
    return (*([*sizes[:-1], units] for sizes in results), None)
