"""The statistics of a layer's weights that the mask network reads."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunus import scores
from prunus.errors import UserError
from prunus.graph import CONSUMES, PRODUCES, Graph, Tag, axes
from prunus.selection import cost
from prunus.surgery import effective_tensors

EXTRA = 3  # numbers about an axis beside those about its units
SAME = 1e-6  # of the largest: units that differ by less are the same but for rounding


def in_order(graph: Graph, names: Sequence[str]) -> list[str]:
    """Names of axes in the order in which the network first computes them."""
    first: dict[str, int] = {}
    for number, op in enumerate(graph.ops):
        for tag in op.results:
            for layout in tag.dims if isinstance(tag, Tag) else ():
                for axis in axes.leaves(layout):
                    first.setdefault(axis.name, number)
    return sorted(names, key=lambda name: first.get(name, len(graph.ops)))


@torch.no_grad()
def rms(model: nn.Module, graph: Graph) -> scores.Scores:
    """How large a unit's weights are: the root of the sum, over all weights that write to it or read from it, of their
    mean squares. Scales of norms do not count."""
    squares = {
        name: tensor.detach().float().square()
        for name, tensor in effective_tensors(model).items()
        if tensor.dim() > 1
    }
    found = {}
    for axis in graph.axes:
        total = torch.zeros(graph.axes[axis].size)
        for member in graph.members(axis):
            if member.role in (PRODUCES, CONSUMES) and member.tensor in squares:
                along = squares[member.tensor].movedim(member.dim, 0).flatten(1).mean(1).cpu()
                total += along[member.index].mean(1)
        found[axis] = total.sqrt()
    return found


def standardised(values: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Tensor:
    """(N,): the values of each axis less their mean, over their standard deviation; 0 where all are the same.

    sizes: of the axes, in order. Raises UserError for an axis without its values (size,), or with others than numbers.
    """
    found = []
    for name, size in sizes.items():
        value = torch.as_tensor(values.get(name, ())).detach().double().cpu()
        if value.shape != (size,) or not value.isfinite().all():
            seen = f"{tuple(value.shape)}" if name in values else "none"
            raise UserError(
                f"the statistic of axis {name} should be {size} finite numbers, but is of shape {seen}"
                f"{'' if value.isfinite().all() else ', with NaN or infinity'}. Are the model's weights whole?"
            )
        apart = value - value.mean()
        spread = apart.square().mean().sqrt()
        found.append(apart / spread if spread > SAME * value.abs().max() else torch.zeros(size))
    return torch.cat(found).float()


def inputs_of(graph: Graph, names: Sequence[str], statistics: Tensor) -> Tensor:
    """(G, C_max + 3): of each axis its statistics with zeros behind, the logarithm of its length over that of the
    longest, the share of all multiply-accumulates that needs it, and its place from 0 to 1."""
    sizes = [graph.axes[name].size for name in names]
    longest = max(sizes)
    whole = torch.tensor([axis.size for axis in graph.axes.values()], dtype=torch.float64)
    columns = torch.tensor([list(graph.axes).index(name) for name in names])
    without = cost.of(graph, "macs", whole.repeat(len(names), 1).scatter(1, columns[:, None], 0.0))
    shares = 1 - without / cost.of(graph, "macs", whole[None])
    rows = torch.zeros(len(names), longest + EXTRA)
    for row, part in zip(rows, statistics.split(sizes), strict=True):
        row[: len(part)] = part
    logs = torch.tensor(sizes).log() / torch.tensor(max(2, longest)).log()
    rows[:, longest:] = torch.stack([logs, shares.float(), torch.linspace(0, 1, len(names))], 1)
    return rows


STATISTICS: dict[str, Callable[[nn.Module, Graph], scores.Scores]] = {
    "rms": rms,
    "magnitude": scores.magnitude,
    "fpgm": scores.fpgm,
    "bn_scale": scores.bn_scale,
}
