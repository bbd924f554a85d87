"""The PruningNet: blocks that generate the weights of a network of any widths.

Liu et al., MetaPruning, ICCV 2019, arXiv:1903.10258, section 3.1: each weight has a block of two linear layers with a
ReLU between. Its input is the widths of the weight's own axes, as shares of the whole; its output is the weight at
full size, of which a network uses the part that it keeps.

    paper      W = W2 relu(W1 v + b1) + b2. Unscaled, so only if a norm follows. 33 times the weights at hidden=32
    residual   W = W0 + A relu(W1 v + b1), A = 0 initially: starts as a network with shared weights W0 (ours)
    factored   W = W0 (1 + U h)(1 + V h), per output and input, U = V = 0 initially, h as above: few parameters (ours,
               after Li et al., DHP, ECCV 2020, arXiv:2003.13683)
"""

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from prunus.errors import UserError, unknown
from prunus.graph import PRODUCES, SCALES, Graph, axes

Form = Literal["paper", "residual", "factored"]
HIDDEN = 32  # features between the two layers, as in the paper
GB = 1e9  # bytes
COPIES = 3  # of each number: itself, its gradient, its momentum


class PruningBlock(nn.Module):
    """A module that generates one weight of `shape` from `inputs` widths."""

    def __init__(self, shape: torch.Size, inputs: int, form: Form, hidden: int):
        super().__init__()
        self.shape, self.form = shape, form
        self.first = nn.Linear(inputs, hidden)
        if form == "factored":
            self.factors = nn.ModuleList(nn.Linear(hidden, size, bias=False) for size in shape[:2])
        else:
            self.second = nn.Linear(hidden, shape.numel(), bias=form == "paper")
        for layer in [] if form == "paper" else self.factors if form == "factored" else [self.second]:
            nn.init.zeros_(layer.get_parameter("weight"))

    def forward(self, shares: Tensor, own: Tensor) -> Tensor:
        """The weight, at full size. shares: (inputs,), widths in (0, 1]. own: W0, which form=paper does not read."""
        hidden = torch.relu(self.first(shares))
        if self.form == "factored":
            for dim, factor in enumerate(self.factors):
                shape = [-1 if d == dim else 1 for d in range(len(self.shape))]
                own = own * (1 + factor(hidden)).view(shape)
            return own
        made = self.second(hidden).view(self.shape)
        return made if self.form == "paper" else own + made


class PruningNet(nn.Module):
    """The blocks for a traced model.

    Generated are weights of two or more dimensions that write to an axis and lie on one of varying width; with
    form=paper, only those whose units go through a norm. The classifier, biases and norms are not generated, as in the
    paper; all networks share them. Source: Liu et al., ICCV 2019, arXiv:1903.10258.

    Args:
        graph: The graph of the model.
        names: The axes whose widths vary.
        form: "paper", "residual" or "factored", see the top of this file.
        hidden: Features between the two layers of a block.
        memory_bytes: Available memory; None: of this machine.

    Raises:
        UserError: No weight can be generated, or the blocks do not fit into memory; the message names a smaller form.
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
        self.context = check_memory(graph, names, form, hidden, memory_bytes)
        self.blocks = nn.ModuleList(
            PruningBlock(graph.shapes[name], len(near), form, hidden) for name, near in self.context.items()
        )

    @property
    def unread(self) -> Collection[str]:
        """The weights that form=paper generates without reading their own values."""
        return self.context if self.form == "paper" else ()

    def forward(self, widths: Mapping[str, int], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The generated weights, by name and at full size, of the network of these widths. own: W0 of each."""
        made, like = {}, next(self.parameters())
        with torch.autocast(like.device.type, enabled=False):  # many small numbers are added
            for (name, near), block in zip(self.context.items(), self.blocks, strict=True):
                shares = [widths[axis] / self.graph.axes[axis].size for axis in near]
                weight = block(torch.tensor(shares, dtype=like.dtype, device=like.device), own[name])
                made[name] = weight.to(own[name].dtype)
        return made


def weights_to_make(graph: Graph, names: Collection[str], form: Form) -> Iterator[tuple[str, list[str]]]:
    """Each weight that a PruningNet generates, with its axes among `names` in the order of its dimensions."""
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
    """Whether a norm has a scale or statistics for each unit of an axis."""
    return any(member.role in (SCALES, "buffer") for member in graph.members(axis))


def size_bytes(graph: Graph, context: Mapping[str, list[str]], form: Form, hidden: int) -> int:
    """The memory of the blocks in training, in bytes, with float32."""
    numbers = 0
    for name, near in context.items():
        shape = graph.shapes[name]
        numbers += (len(near) + 1) * hidden
        numbers += hidden * (sum(shape[:2]) if form == "factored" else shape.numel())
        numbers += shape.numel() if form == "paper" else 0
    return 4 * COPIES * numbers


def check_memory(
    graph: Graph, names: Collection[str], form: Form, hidden: int, memory_bytes: float | None = None
) -> dict[str, list[str]]:
    """The weights that a PruningNet would generate, see `weights_to_make`.

    Raises UserError if there are none, or if they need more memory than there is, saying what would fit.
    """
    context = dict(weights_to_make(graph, names, form))
    if not context:
        raise UserError(
            "form=paper generates weights that a norm follows, and this network has none on an axis that may shrink; "
            "take form=residual."
        )
    allowed = available_bytes() if memory_bytes is None else memory_bytes
    needed = size_bytes(graph, context, form, hidden)
    if needed > allowed:
        small = size_bytes(graph, context, "factored", hidden)
        raise UserError(
            f"the PruningNet's weights, gradients and momenta take {needed / GB:.2g} GB (form={form}, "
            f"hidden={hidden}), but there are {allowed / GB:.2g} GB. form=factored takes {small / GB:.2g} GB; or give "
            "a smaller hidden, or weights=shared, which takes nothing."
        )
    return context


def available_bytes() -> float:
    """The memory for training, in bytes: free memory of the accelerator, if there is one, otherwise the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
