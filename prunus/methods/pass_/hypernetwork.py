"""The mask network: an LSTM that reads statistics of the weights, axis by axis, and scores the units of each.

Huang et al., PASS, arXiv:2407.17412. Only the paper's abstract and introduction were available; sizes, statistics and
the encoder are ours. Shapes: N units on G axes, in the order in which the network computes them; C_max units on the
longest axis; D features in the state of the LSTM.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
import torch
from torch import Tensor, nn

from prunus.errors import FileError
from prunus.files import Count, Record, read_header, read_tensors, shorten, write_tensors
from prunus.methods.pass_.statistics import EXTRA

FORMAT = 1
HEADER = "prunus_hypernetwork"


class Described(Record, frozen=True, kw_only=True):
    """The header of a hypernetwork's file: the network and the options that it belongs to; see `Config.described`."""

    newest: ClassVar[int] = FORMAT
    remedy: ClassVar[str] = "Give a hypernetwork.safetensors of a run of pass."
    axes: list[tuple[str, Count]]
    prompt: list[str | int] | None
    hidden: Count
    recurrent: bool
    init: str
    statistic: str


class MaskNetwork(nn.Module):
    """A recurrent hypernetwork that scores units.

    Args:
        sizes: The sizes of the axes, in order.
        hidden: D.
        recurrent: False: every axis is read alone, from the same initial state.
        init: "magnitude": the LSTM's output, zero at first, is added to the statistics; "random": the scores are the
            LSTM's output.
        channels: Channels of the prompt that is encoded into the initial state; None: no prompt, the state is 0.
    """

    owners: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        hidden: int = 64,
        recurrent: bool = True,
        init: str = "magnitude",
        channels: int | None = None,
    ):
        super().__init__()
        self.recurrent, self.warm = recurrent, init == "magnitude"
        self.read = nn.Linear(max(sizes) + EXTRA, hidden)
        self.lstm = nn.LSTM(hidden, hidden)
        self.encoder = Encoder(channels, hidden) if channels else None
        bound = 0.0 if self.warm else hidden**-0.5  # as nn.Linear is initialised
        self.heads = nn.Parameter(torch.empty(sum(sizes), hidden).uniform_(-bound, bound))
        self.offsets = nn.Parameter(torch.empty(sum(sizes)).uniform_(-bound, bound))
        owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.register_buffer("owners", owners, persistent=False)

    def forward(self, inputs: Tensor, statistics: Tensor, canvas: Tensor | None = None) -> Tensor:
        """The scores of all units.

        Args:
            inputs: (G, C_max + 3), see `network_inputs`.
            statistics: (N,), see `standardise`.
            canvas: (C, H, W), the prompt.

        Returns:
            (N,), differentiable.
        """
        with torch.autocast(
            inputs.device.type, enabled=False
        ):  # scores are compared, so they have to be exact
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
            output = (self.heads * found.index_select(0, self.owners)).sum(1) + self.offsets
            return statistics + output if self.warm else output


class Encoder(nn.Module):
    """A network that encodes a prompt (C, H, W) of any size into the initial state (2, D) of the LSTM: h and c."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, hidden, 3, 2, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, 2 * hidden)),
        )

    def forward(self, canvas: Tensor) -> Tensor:
        """The initial state (2, D)."""
        h, c = self.layers(canvas[None])[0].chunk(2)
        return torch.stack([h.tanh(), c])


def save(path: str | Path, tensors: Mapping[str, Tensor], described: Mapping) -> None:
    """Write a hypernetwork's tensors, with a description of the network and options it belongs to as a header."""
    write_tensors(Path(path), dict(tensors), {HEADER: json.dumps({"format": FORMAT, **described})})


def load(path: str | Path, described: Mapping) -> dict[str, Tensor]:
    """The tensors of a saved hypernetwork.

    Raises FileError if it was made for other axes or options than are `described`, naming them, or is damaged.
    """
    tensors = read_tensors(Path(path))
    there = msgspec.to_builtins(read_header(Path(path), HEADER, Described))
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            what = "NaN or infinity" if tensor.dtype == torch.float32 else f"{tensor.dtype}, not float32,"
            raise FileError(f"{path} holds {what} in {shorten(name)}; train a new hypernetwork.")
    wanted = json.loads(json.dumps(dict(described)))
    ours, theirs = wanted.pop("axes"), [list(axis) for axis in there.pop("axes")]
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
            f"the hypernetwork in {path} does not fit: {'; '.join(wrong[:3])}{more}. It fits only the architecture and "
            "options it was trained with; otherwise train a new one."
        )
    return tensors


def _words(signature: list, number: int) -> str:
    return "{}[{}]".format(*signature[number]) if number < len(signature) else "missing"
