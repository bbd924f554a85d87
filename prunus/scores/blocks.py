"""What the blocks of a model do on data: what each was given and returned, and scores of blocks from that.

    influence         how far a block turns its input       ShortGPT, arXiv:2403.03853
    features          what a block returns, for one example a row
    gradient_norms    how long the gradient of the loss is in a block

Every function reads the blocks of `graph.blocks`; the change of the loss without a block is in `taylor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from prunus.errors import UserError, unknown
from prunus.graph import Block, Graph, axes, given_argument, is_inexact, make_skeleton, plain_model
from prunus.inputs import real_positions
from prunus.scores.members import Batches, Scores, _answer, _as_float, _checked_loss, _to_device

Of = Literal["parameters", "outputs"]


class Watched:
    """The blocks of a bare model, watched: after each call of the model, the input and output of each.

    Args:
        bare: The model (see `graph.make_skeleton`); it gets hooks.
        graph: The graph of the original.
        gradients: Whether a backward pass computes `slopes`, the derivatives by a gate on what each block adds.
    """

    def __init__(self, bare: nn.Module, graph: Graph, gradients: bool = False):
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.slopes: dict[str, Tensor] = {}
        self.gradients = gradients
        for axis, block in graph.blocks.items():
            module = bare.get_submodule(block.module)
            module.register_forward_pre_hook(self._enter(axis, block), with_kwargs=True)
            module.register_forward_hook(self._leave(axis, block))

    def _enter(self, axis: str, block: Block) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = given_argument(block.argument, args, kwargs)
            self.inputs[axis] = given.detach().clone()  # the block may write to it

        return hook

    def _leave(self, axis: str, block: Block) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            own = output if block.returns is None else output[block.place]
            self.outputs[axis] = own
            if self.gradients and own.requires_grad:
                own.register_hook(self._slope(axis, self.branch(axis, block)))
            copied = own.clone()  # which the model may write to
            if block.returns is None:
                return copied
            return (*output[: block.place], copied, *output[block.place + 1 :])

        return hook

    def _slope(self, axis: str, added: Tensor) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            self.slopes[axis] = (_as_float(gradient) * _as_float(added)).sum()

        return hook

    def branch(self, axis: str, block: Block) -> Tensor:
        """Return what a block added to the signal, detached."""
        own = self.outputs[axis].detach()
        return own if block.branch else own - self.inputs[axis]


class _Seen(NamedTuple):
    """One call of a bare model, with what its blocks did."""

    bare: nn.Module
    watched: Watched
    inputs: Any
    targets: Any
    output: Any


def _runs(model: nn.Module, graph: Graph, batches: Batches, what: str) -> Iterator[_Seen]:
    """Call a bare copy of a model with each batch. Raises UserError if there is none, or a wrong one, or no block."""
    if not graph.blocks:
        raise UserError(f"{what}: this model has no block that can be skipped; {_why(graph)}.")
    bare = make_skeleton(plain_model(model), real=True)
    for parameter in bare.parameters():
        parameter.requires_grad_(torch.is_grad_enabled() and is_inexact(parameter))
    watched = Watched(bare, graph)
    empty = True
    for inputs, targets in _to_device(bare, batches, what):
        empty = False
        yield _Seen(bare, watched, inputs, targets, _answer(bare, inputs, what))
    if empty:
        raise UserError(f"{what}: expected at least one batch to score with, got none; give data.")


def _why(graph: Graph) -> str:
    """Say why some module cannot be skipped."""
    return next(
        (f"{name}: {why}" for name, why in graph.blocks.unskippable.items()), "nothing in it multiplies"
    )


@torch.no_grad()
def influence(model: nn.Module, graph: Graph, batches: Batches) -> Scores:
    """Score blocks by 1 - the mean cosine of their input and output, over positions and examples, in eval mode.

    Branches, which are added to a signal outside of them, have no such score. Positions that `attention_mask` marks as
    padding are left out. Source: Men et al., ShortGPT, arXiv:2403.03853.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        batches: (inputs, targets) pairs; the targets are not used.

    Returns:
        {axis of a block: float32 (1,)}; higher means keep.

    Raises:
        UserError: There is no batch, or no block that is not a branch.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for _, watched, inputs, *_ in _runs(model, graph, batches, "influence"):
        real = real_positions(inputs)
        for axis, block in graph.blocks.items():
            if not block.branch:
                one, other = watched.inputs[axis].float(), watched.outputs[axis].float()
                cosine = torch.cosine_similarity(one, other, dim=feature_dim(block))
                if real is not None and cosine.shape == real.shape:
                    cosine = cosine[real]
                sums[axis] = sums.get(axis, torch.zeros(())) + (1 - cosine).sum()
                counts[axis] = counts.get(axis, 0) + cosine.numel()
    if not sums:
        raise UserError(
            "influence: all blocks of this model are branches, which have no such score; use taylor(..., depth=True)."
        )
    return {axis: (sums[axis] / counts[axis]).reshape(1) for axis in sums}


@torch.no_grad()
def features(model: nn.Module, graph: Graph, batches: Batches) -> dict[str, Tensor]:
    """Collect what blocks return, averaged over positions, in eval mode.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        batches: (inputs, targets) pairs; the targets are not used.

    Returns:
        {axis of a block: float32 (examples, features)}.

    Raises:
        UserError: There is no batch, or no block.
    """
    found: dict[str, list[Tensor]] = {axis: [] for axis in graph.blocks}
    for _, watched, inputs, *_ in _runs(model, graph, batches, "features"):
        real = real_positions(inputs)
        for axis, block in graph.blocks.items():
            value = watched.outputs[axis].float().movedim(feature_dim(block), -1)
            if real is not None and value.shape[:-1] == real.shape:
                value = (value * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
            found[axis].append(value.flatten(1, -2).mean(1) if value.dim() > 2 else value)
    return {axis: torch.cat(parts) for axis, parts in found.items()}


def gradient_norms(
    model: nn.Module,
    graph: Graph,
    loss: Callable[[Any, Any], Tensor],
    batches: Batches,
    of: Of = "parameters",
) -> Scores:
    """Score blocks by the mean over batches of the length of the gradient of the loss, in eval mode.

    Args:
        model: The traced model; its gradients are not touched.
        graph: Its graph.
        loss: loss(output, targets) -> scalar.
        batches: (inputs, targets) pairs.
        of: The gradient with respect to the parameters of a block, or to what it returns.

    Returns:
        {axis of a block: float32 (1,)}; higher means keep.

    Raises:
        UserError: There is no batch, or no block, or `of` is neither of these.
    """
    if of not in get_args(Of):
        raise unknown("gradient", of, get_args(Of))
    total: Scores = {}
    count = 0
    with torch.inference_mode(False), torch.enable_grad():
        for bare, watched, _, targets, output in _runs(model, graph, batches, "gradient_norms"):
            if of == "outputs":
                wanted = {axis: [watched.outputs[axis]] for axis in graph.blocks}
            else:
                wanted = {
                    axis: [p for p in bare.get_submodule(block.module).parameters() if p.requires_grad]
                    for axis, block in graph.blocks.items()
                }
            flat = list({id(each): each for parts in wanted.values() for each in parts}.values())
            value = _checked_loss(loss(output, targets), "gradient_norms")
            found = torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True)
            squares = {id(each): own.float().square().sum() for each, own in zip(flat, found, strict=True)}
            for axis, parts in wanted.items():
                length = sum((squares[id(each)] for each in parts), torch.zeros(())).sqrt().reshape(1)
                total[axis] = total[axis] + length if axis in total else length
            count += 1
    return {axis: lengths / count for axis, lengths in total.items()}


def feature_dim(block: Block) -> int:
    """Return the dimension of a block's output that holds features, not positions.

    Args:
        block: The block.

    Returns:
        The first dimension in which something can shrink; without one, the second of images and the last of others.
    """
    dims = block.output.dims
    free = (dim for dim, layout in enumerate(dims) if axes.can_shrink(layout))
    return next(free, 1 if len(dims) == 4 else len(dims) - 1)
