"""Shrink a model in place, so that a training loop that holds it, its parameters and its optimiser goes on."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from prunus.errors import UserError
from prunus.graph import Graph, Keep, kept_tensors, plain_model, set_attributes, set_kept
from prunus.surgery.apply import shrink
from prunus.surgery.optimizer_state import carry_over
from prunus.surgery.slicing import slice_tensor


def shrink_in_place(
    model: nn.Module,
    graph: Graph,
    keep: Keep,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    verify: str = "on",
) -> None:
    """Shrink a model as `shrink` does, but let the model, its modules and its parameters stay the same objects.

    Parameters and their gradients get smaller values, and so does the state of the optimiser, which goes on with the
    same parameters: nothing that refers to one of them (a trainer, a learning-rate scheduler, a hook) has to be told.
    The small model is made and proved beside the original before anything is changed, so an error changes nothing.

    Args:
        model: The traced model, which is changed.
        graph: Its graph, which is that of the model before; trace again for the next cut.
        keep: axis -> indices that stay.
        optimizer: An optimiser of the model's parameters, whose state is changed.
        verify: "on" proves the result, "off" skips the proof.

    Raises:
        FileError: `model` is not the model that was traced.
        PruningError: The proof failed; the message names the axes.
        UserError: `keep` does not fit the graph, the small model has other parameters (masks, gates, fewer blocks), the
            optimiser's state cannot be cut (see `carry_over`), or the model is in DistributedDataParallel.
    """
    if isinstance(model, DistributedDataParallel):
        raise UserError(
            "a model in DistributedDataParallel cannot be shrunk in place: its buckets have the gradients' old sizes. "
            "Shrink model.module, carry the optimiser over (prunus.carry_over), and wrap the small one."
        )
    model = plain_model(model)
    keep = graph.check_keep(keep)  # sorted, so that parameters and gradients are cut in the same order
    small = shrink(model, graph, keep, verify=verify)
    _check_same(model, small)
    if optimizer is not None:
        carried, _ = carry_over(graph, keep, model, small, optimizer=optimizer)
        assert carried is not None
        _take_state(optimizer, carried, model, small)
    _take_tensors(model, small, graph, keep)
    _take_integers(model, small, graph, keep)


def _check_same(model: nn.Module, small: nn.Module) -> None:
    """Raise UserError unless both have the same modules and parameters."""
    ours = [*dict(model.named_modules()), *dict(model.named_parameters())]
    theirs = [*dict(small.named_modules()), *dict(small.named_parameters())]
    other = sorted({*ours} ^ {*theirs})
    if other:
        raise UserError(
            f"this model cannot be shrunk in place, because the small one has other parts ({', '.join(other[:3])}): "
            "masks, gates and blocks that are left out need a new model. Use shrink and carry_over."
        )


def _take_state(
    old: torch.optim.Optimizer, new: torch.optim.Optimizer, model: nn.Module, small: nn.Module
) -> None:
    """Let an optimiser, and those inside of it, hold the state of its smaller copy."""
    for parameter, its_small in zip(model.parameters(), small.parameters(), strict=True):
        if parameter in old.state:
            old.state[parameter] = new.state[its_small]
    for name, inner in vars(old).items():
        if isinstance(inner, torch.optim.Optimizer):
            _take_state(inner, vars(new)[name], model, small)


def _take_tensors(model: nn.Module, small: nn.Module, graph: Graph, keep: Keep) -> None:
    """Let a model's parameters have the values of the small one's, and take its buffers and kept tensors."""
    layouts = graph.layouts | graph.behind
    theirs = dict(small.named_parameters())
    for name, parameter in model.named_parameters():
        gradient, parameter.grad = parameter.grad, None
        parameter.data = theirs[name].data
        if gradient is not None:
            parameter.grad = slice_tensor(gradient, layouts[name], keep).clone()
    modules = dict(small.named_modules())
    for path, module in model.named_modules():
        module._buffers.update(modules[path]._buffers)
    set_kept(model, kept_tensors(small))


def _take_integers(model: nn.Module, small: nn.Module, graph: Graph, keep: Keep) -> None:
    """Let a model's integers follow its axes, and what its layers state about their sizes."""
    widths = graph.widths(keep)
    set_attributes(model, graph.integers(widths), widths)
    modules = dict(small.named_modules())
    for path, module in model.named_modules():
        theirs = vars(modules[path])
        for name, value in vars(module).items():
            if type(value) is int and type(theirs.get(name)) is int:
                vars(module)[name] = theirs[name]
    model.prunus_notes = small.prunus_notes
