"""A recurrent hypernetwork: an LSTM walks through a network's axes, reads what their weights are like, and scores their
units.

Huang et al., PASS, arXiv:2407.17412. What could not be read of it (sizes, which statistics, the encoder) is decided in
our specification of it. Shapes: N units on G axes, one behind the other in the order in which the network computes
them; C_max units on the longest; D numbers in the state of the LSTM.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from prunus import scores
from prunus.errors import FileError, UserError
from prunus.files import read_tensors, write_tensors
from prunus.graph import CONSUMES, PRODUCES, Graph, Tag, axes
from prunus.selection import cost
from prunus.surgery import effective

FORMAT = 1
HEADER = "prunus_hypernetwork"
EXTRA = 3  # numbers about an axis beside those about its units
SAME = 1e-6  # of the largest: units that differ by less are the same but for rounding


class Hypernetwork(nn.Module):
    """Gives each unit a score.

    sizes: of the axes, in order. hidden: D. recurrent: False: every axis is read alone, from the same first state.
    init: magnitude: the scores are the statistics at first, and what the LSTM says is added to them; random: they are
    what the LSTM says. planes: of the prompt from which the first state is made; None: there is none, the state is 0.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        hidden: int = 64,
        recurrent: bool = True,
        init: str = "magnitude",
        planes: int | None = None,
    ):
        super().__init__()
        self.recurrent, self.warm = recurrent, init == "magnitude"
        self.read = nn.Linear(max(sizes) + EXTRA, hidden)
        self.lstm = nn.LSTM(hidden, hidden)
        self.encoder = Encoder(planes, hidden) if planes else None
        bound = 0.0 if self.warm else hidden**-0.5  # as nn.Linear begins
        self.heads = nn.Parameter(torch.empty(sum(sizes), hidden).uniform_(-bound, bound))
        self.offsets = nn.Parameter(torch.empty(sum(sizes)).uniform_(-bound, bound))
        owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.register_buffer("owners", owners, persistent=False)

    def forward(self, inputs: Tensor, statistics: Tensor, canvas: Tensor | None = None) -> Tensor:
        """(N,): scores. inputs (G, C_max + 3): see `inputs_of`. statistics (N,): see `standardised`. canvas (C, H, W):
        the prompt."""
        with torch.autocast(inputs.device.type, enabled=False):  # what is compared has to be exact
            steps = self.read(inputs)
            if self.encoder is None:
                first = steps.new_zeros(2, steps.shape[1])
            else:
                first = self.encoder(canvas)
            if self.recurrent:
                found = self.lstm(steps[:, None], tuple(first[:, None, None]))[0][:, 0]
            else:
                alone = first[:, None, None].expand(-1, 1, len(steps), -1).contiguous()
                found = self.lstm(steps[None], tuple(alone))[0][0]
            said = (self.heads * found.index_select(0, self.owners)).sum(1) + self.offsets
            return statistics + said if self.warm else said


class Encoder(nn.Module):
    """A prompt (C, H, W) of any size becomes the first state of the LSTM, (2, D): h and c."""

    def __init__(self, planes: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(planes, 16, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, hidden, 3, 2, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, 2 * hidden)),
        )

    def forward(self, canvas: Tensor) -> Tensor:
        """(2, D)."""
        h, c = self.layers(canvas[None])[0].chunk(2)
        return torch.stack([h.tanh(), c])


# ----------------------------------------------------------------------------------- what it reads
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
        for name, tensor in effective(model).items()
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


# ------------------------------------------------------------------------------------------- files
def save(path: str | Path, tensors: Mapping[str, Tensor], described: Mapping) -> None:
    """Write tensors, and in the file's header as JSON what they belong to."""
    write_tensors(Path(path), dict(tensors), {HEADER: json.dumps({"format": FORMAT, **described})})


def load(path: str | Path, described: Mapping) -> dict[str, Tensor]:
    """The tensors of a hypernetwork that was saved. Raises FileError, naming what differs, if it was made for other
    axes or with other options than are `described`, or is damaged."""
    tensors, there = read_tensors(Path(path)), _header(path)
    spoilt = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if spoilt:
        raise FileError(f"{path} holds NaN or infinity in {spoilt[0]}; learn a new one.")
    wanted = json.loads(json.dumps(dict(described)))
    ours, theirs = wanted.pop("axes"), there.pop("axes")
    wrong = [
        f"its axis {number} is {_words(theirs, number)}, the network's {_words(ours, number)}"
        for number in range(max(len(ours), len(theirs)))
        if ours[number : number + 1] != theirs[number : number + 1]
    ]
    wrong += [
        f"it has {key}={there.get(key)}, not {value}"
        for key, value in wanted.items()
        if there.get(key) != value
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise FileError(
            f"the hypernetwork in {path} does not fit: {'; '.join(wrong[:3])}{more}. It serves networks of the one "
            "architecture it was learned on, with the same options; else learn a new one."
        )
    return tensors


def _header(path: str | Path) -> dict:
    """What the file says it belongs to. Raises FileError if it does not say so."""
    with safe_open(path, "pt") as opened:
        text = (opened.metadata() or {}).get(HEADER, "null")
    try:
        there = json.loads(text)
        whole = there["format"] == FORMAT and all(len(pair) == 2 for pair in there["axes"])
    except (ValueError, TypeError, KeyError):  # no JSON, or another thing
        whole = False
    if not whole:
        raise FileError(
            f"{path} is no hypernetwork of format {FORMAT}; give a hypernetwork.safetensors of a run of pass."
        )
    return there


def _words(signature: list, number: int) -> str:
    return "{}[{}]".format(*signature[number]) if number < len(signature) else "missing"
