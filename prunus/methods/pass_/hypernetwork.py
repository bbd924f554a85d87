"""A recurrent hypernetwork: an LSTM walks through a network's axes, reads what their weights are like, and scores their
units.

Huang et al., PASS, arXiv:2407.17412. What could not be read of it (sizes, which statistics, the encoder) is decided in
our specification of it. Shapes: N units on G axes, one behind the other in the order in which the network computes
them; C_max units on the longest; D numbers in the state of the LSTM.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from prunus.errors import FileError
from prunus.files import read_tensors, write_tensors
from prunus.methods.pass_.statistics import EXTRA

FORMAT = 1
HEADER = "prunus_hypernetwork"


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
