"""The PruningNet: blocks that make the weights of a network of any widths.

Liu et al., MetaPruning, ICCV 2019, arXiv:1903.10258, section 3.1: each weight has a block of its own, two linear layers
with a ReLU between, which is given the widths that the weight itself has, as shares of the whole, and makes it at full
size; a network uses the part of it that it keeps.

    paper      W = W2 relu(W1 v + b1) + b2. Unscaled, so only where a norm follows. 33 times the weights at hidden=32
    residual   W = W0 + A relu(W1 v + b1), A = 0 at first: begins as a network that shares its weights W0 (ours)
    factored   W = W0 (1 + U h)(1 + V h), per output and input, U = V = 0 at first; h as above: few numbers (ours, after
               Li et al., DHP, ECCV 2020, arXiv:2003.13683)
"""

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from prunus.errors import UserError, unknown
from prunus.graph import PRODUCES, SCALES, Graph, axes

Form = Literal["paper", "residual", "factored"]
HIDDEN = 32  # numbers between the two layers, the paper's
GB = 1e9  # bytes
COPIES = 3  # of each number: itself, its gradient, its momentum


class PruningBlock(nn.Module):
    """Makes one weight of `shape`. inputs: how many widths it is given."""

    def __init__(self, shape: torch.Size, inputs: int, form: Form, hidden: int):
        super().__init__()
        self.shape, self.form = shape, form
        self.first = nn.Linear(inputs, hidden)
        if form == "factored":
            self.factors = nn.ModuleList(nn.Linear(hidden, size, bias=False) for size in shape[:2])
        else:
            self.second = nn.Linear(hidden, shape.numel(), bias=form == "paper")
        for layer in [] if form == "paper" else self.factors if form == "factored" else [self.second]:
            nn.init.zeros_(layer.weight)

    def forward(self, shares: Tensor, own: Tensor) -> Tensor:
        """The weight, in full size. shares: (inputs,), widths in (0, 1]; own: W0, which form=paper does not read."""
        hidden = torch.relu(self.first(shares))
        if self.form == "factored":
            for dim, factor in enumerate(self.factors):
                shape = [-1 if d == dim else 1 for d in range(len(self.shape))]
                own = own * (1 + factor(hidden)).view(shape)
            return own
        made = self.second(hidden).view(self.shape)
        return made if self.form == "paper" else own + made


class PruningNet(nn.Module):
    """The blocks of a traced model. names: the axes whose widths vary.

    Made are weights of two dimensions or more that lie on such an axis and write to one; the classifier is not, nor are
    biases and norms, as in the paper; with form=paper only those whose units go through a norm. Such tensors are shared
    by all networks. Raises UserError if there are none, or if they do not fit in memory, naming a smaller form.
    """

    def __init__(
        self,
        graph: Graph,
        names: Collection[str],
        *,
        form: Form = "paper",
        hidden: int = HIDDEN,
        memory_bytes: float | None = None,
    ):
        super().__init__()
        if form not in get_args(Form):
            raise unknown("form", form, get_args(Form))
        self.graph, self.form = graph, form
        self.context = refuse_too_large(graph, names, form, hidden, memory_bytes)
        self.blocks = nn.ModuleList(
            PruningBlock(graph.shapes[name], len(near), form, hidden) for name, near in self.context.items()
        )

    @property
    def unread(self) -> Collection[str]:
        """The weights that form=paper makes without reading their own values."""
        return self.context if self.form == "paper" else ()

    def forward(self, widths: Mapping[str, int], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights, by name and in full size, of the network of these widths. own: W0 of each."""
        made, like = {}, next(self.parameters())
        with torch.autocast(like.device.type, enabled=False):  # small numbers add up here
            for (name, near), block in zip(self.context.items(), self.blocks, strict=True):
                shares = [widths[axis] / self.graph.axes[axis].size for axis in near]
                weight = block(torch.tensor(shares, dtype=like.dtype, device=like.device), own[name])
                made[name] = weight.to(own[name].dtype)
        return made


def made_weights(graph: Graph, names: Collection[str], form: Form) -> Iterator[tuple[str, list[str]]]:
    """Each weight that a PruningNet makes, with the axes of `names` it lies on, in the order of its dimensions."""
    for name, layouts in graph.layouts.items():
        near = [axis.name for layout in layouts for axis in axes.leaves(layout) if axis.name in names]
        written = [
            axis.name
            for dim, layout in enumerate(layouts)
            if graph.role(name, dim) == PRODUCES
            for axis in axes.leaves(layout)
        ]
        normed = any(is_normed(graph, axis) for axis in written)
        if len(layouts) > 1 and near and written and (normed or form != "paper"):
            yield name, list(dict.fromkeys(near))


def is_normed(graph: Graph, axis: str) -> bool:
    """Whether a norm has a scale, or statistics, for each unit of an axis."""
    return any(member.role in (SCALES, "buffer") for member in graph.members(axis))


def size_bytes(graph: Graph, context: Mapping[str, list[str]], form: Form, hidden: int) -> int:
    """What the blocks need while they are trained, in float32."""
    numbers = 0
    for name, near in context.items():
        shape = graph.shapes[name]
        numbers += (len(near) + 1) * hidden
        numbers += hidden * (sum(shape[:2]) if form == "factored" else shape.numel())
        numbers += shape.numel() if form == "paper" else 0
    return 4 * COPIES * numbers


def refuse_too_large(
    graph: Graph, names: Collection[str], form: Form, hidden: int, memory_bytes: float | None = None
) -> dict[str, list[str]]:
    """What a PruningNet would make, see `made_weights`. Raises UserError if that is nothing, or if it needs more memory
    than there is, saying what would fit."""
    context = dict(made_weights(graph, names, form))
    if not context:
        raise UserError(
            "form=paper makes the weights that a norm follows, and this network has none such on an axis that may "
            "shrink; take form=residual."
        )
    allowed = available_bytes() if memory_bytes is None else memory_bytes
    needed = size_bytes(graph, context, form, hidden)
    if needed > allowed:
        small = size_bytes(graph, context, "factored", hidden)
        raise UserError(
            f"the PruningNet's weights, gradients and momenta come to {needed / GB:.2g} GB (form={form}, "
            f"hidden={hidden}), and there are {allowed / GB:.2g} GB. form=factored takes {small / GB:.2g} GB; or give "
            "a smaller hidden, or weights=shared, which takes nothing."
        )
    return context


def available_bytes() -> float:
    """Memory that is there for training: of the accelerator, if there is one, else the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
