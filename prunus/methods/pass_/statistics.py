"""The statistics of the weights that the mask network reads."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunus import scores
from prunus.errors import UserError
from prunus.graph import CONSUMES, PRODUCES, Graph, Tag, axes
from prunus.selection import cost
from prunus.surgery import effective_tensors

EXTRA = 3  # inputs about an axis besides those about its units
SAME = 1e-6  # of the largest value: values that differ by less are equal up to rounding


def order_axes(graph: Graph, names: Sequence[str]) -> list[str]:
    """The names of axes in the order in which the network first computes them."""
    first: dict[str, int] = {}
    for number, op in enumerate(graph.ops):
        for tag in op.results:
            for layout in tag.dims if isinstance(tag, Tag) else ():
                for axis in axes.leaves(layout):
                    first.setdefault(axis.name, number)
    return sorted(names, key=lambda name: first.get(name, len(graph.ops)))


@torch.no_grad()
def rms(model: nn.Module, graph: Graph) -> scores.Scores:
    """Score units by the root of the sum, over all weights that write to them or read from them, of their mean squares.

    Scales of norms do not count. Returns {axis: (size,)}.
    """
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


def standardise(values: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Tensor:
    """Standardise the values of each axis: subtract their mean, divide by their standard deviation.

    Args:
        values: axis -> (size,).
        sizes: axis -> size, in order.

    Returns:
        (N,); 0 on an axis whose values are all equal.

    Raises:
        UserError: Values of an axis are missing, of another shape, NaN or infinite.
    """
    found = []
    for name, size in sizes.items():
        value = torch.as_tensor(values.get(name, ())).detach().double().cpu()
        if value.shape != (size,) or not value.isfinite().all():
            seen = f"{tuple(value.shape)}" if name in values else "none"
            raise UserError(
                f"the statistic of axis {name} should be {size} finite numbers, but is of shape {seen}"
                f"{'' if value.isfinite().all() else ', with NaN or infinity'}. Check the model's weights, or the "
                "statistic you gave."
            )
        apart = value - value.mean()
        spread = apart.square().mean().sqrt()
        found.append(apart / spread if spread > SAME * value.abs().max() else torch.zeros(size))
    return torch.cat(found).float()


def network_inputs(graph: Graph, names: Sequence[str], statistics: Tensor) -> Tensor:
    """The inputs (G, C_max + 3) of the mask network.

    For each axis: its statistics, padded with zeros; the logarithm of its size over that of the largest; the share of
    all multiply-adds that depends on it; and its position from 0 to 1.
    """
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
