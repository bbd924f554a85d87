"""Reference scores for single weights that need gradients; not negative, higher means keep.

The papers prune at initialisation, with one threshold for all layers (allocation "pooled").

    snip      sensitivity of the loss, to first order          Lee et al., ICLR 2019, arXiv:1810.02340
    grasp     change of the gradient's norm, to first order    Wang et al., ICLR 2020, arXiv:2002.07376
    synflow   share of the flow of ones through |weights|      Tanaka et al., NeurIPS 2020, arXiv:2006.05467

The network is in evaluation mode (in the papers in training mode); the model is left untouched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.errors import UserError
from prunus.graph import Graph, make_skeleton
from prunus.inputs import call, move
from prunus.scores import Batches
from prunus.sparse.ranking import highest
from prunus.sparse.scores import WeightScores, maskable

Loss = Callable[[Any, Any], Tensor]
TEMPERATURE = 200.0  # of GraSP: divides the outputs, so that gradients of confident networks do not vanish


def snip(model: nn.Module, graph: Graph, loss: Loss, batches: Batches) -> WeightScores:
    """Compute (w * dL/dw)^2 for the mean loss L over batches. Source: Lee et al., arXiv:1810.02340.

    Args:
        model: The model, which is left untouched.
        graph: Its graph.
        loss: loss(output, targets) -> scalar.
        batches: Pairs (inputs, targets).

    Returns:
        A float32 tensor of its shape for each maskable parameter.

    Raises:
        UserError: There is no batch, or the loss is not finite.
    """
    with _differentiable(model, graph) as (bare, weights):
        gradients = _gradients(bare, weights, loss, batches, 1.0, create_graph=False)
        return {
            n: (w.detach() * g).square().float() for (n, w), g in zip(weights.items(), gradients, strict=True)
        }


def grasp(model: nn.Module, graph: Graph, loss: Loss, batches: Batches) -> WeightScores:
    """Compute w * (H g), shifted to start at 0; removing the highest would reduce the gradient most.

    H is the Hessian and g the gradient of the mean loss over batches, with outputs divided by `TEMPERATURE`.
    Source: Wang et al., arXiv:2002.07376.

    Args:
        model: The model, which is left untouched.
        graph: Its graph.
        loss: loss(output, targets) -> scalar.
        batches: Pairs (inputs, targets).

    Returns:
        A float32 tensor of its shape for each maskable parameter.

    Raises:
        UserError: There is no batch, the loss is not finite, or an operator has no second derivative.
    """
    # fused kernels of attention have no second derivative
    with _differentiable(model, graph) as (bare, weights), sdpa_kernel(SDPBackend.MATH):
        gradients = _gradients(bare, weights, loss, batches, TEMPERATURE, create_graph=True)
        size = _add((g.detach() * g).sum() for g in gradients)
        try:
            products = torch.autograd.grad(
                size, list(weights.values()), allow_unused=True, materialize_grads=True
            )
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise UserError(
                f"grasp needs second derivatives, and torch has none here: {error}. "
                "Take snip, which needs none."
            ) from None
        scores = {n: (w * h).detach().float() for (n, w), h in zip(weights.items(), products, strict=True)}
    least = min(float(score.min()) for score in scores.values())
    return {name: score - least for name, score in scores.items()}


def synflow(
    model: nn.Module, graph: Graph, kept: float, *, names: Sequence[str] | None = None, rounds: int = 100
) -> WeightScores:
    """Compute w * dR/dw, R being the sum of outputs for an input of ones through the absolute weights.

    As in the paper, the weights are pruned step by step; a weight that a step prunes scores 0 from then on.
    Source: Tanaka et al., arXiv:2006.05467.

    Args:
        model: The model, which is left untouched.
        graph: Its graph, with the example for the shape of the input; no data is needed.
        kept: The share (0 to 1) of the weights that stays after the last step.
        names: The parameters that are pruned and scored; all maskable ones if None.
        rounds: The number of steps.

    Returns:
        A float32 tensor of its shape in [0, 1] for each of these parameters.

    Raises:
        UserError: The flow is not finite in double precision.
    """
    example = tree_map_only(
        Tensor,
        lambda t: torch.ones_like(t, dtype=torch.float64) if t.is_floating_point() else t,
        graph.example,
    )
    scores: WeightScores = {}
    with _differentiable(model, graph, torch.float64) as (bare, weights):
        weights = {name: weights[name] for name in (weights if names is None else names)}
        device = next(iter(weights.values())).device
        example = move(example, device)
        with torch.no_grad():
            for parameter in bare.parameters():
                parameter.abs_()
        total = sum(w.numel() for w in weights.values())
        for number in range(1, rounds + 1):
            output = call(bare, example)
            flow = _add(leaf.sum() for leaf in tree_leaves(output) if _is_floating(leaf))
            gradients = torch.autograd.grad(
                flow, list(weights.values()), allow_unused=True, materialize_grads=True
            )
            scores = {n: (w * g).detach() for (n, w), g in zip(weights.items(), gradients, strict=True)}
            if not all(score.isfinite().all() for score in scores.values()):
                raise UserError(
                    "synflow: the flow through this network is not finite in double precision. "
                    "Initialise the weights smaller, or take another score."
                )
            stays = highest(
                torch.cat([s.flatten() for s in scores.values()]), round(kept ** (number / rounds) * total)
            )
            with torch.no_grad():
                parts = stays.split([w.numel() for w in weights.values()])
                for (name, w), part in zip(weights.items(), parts, strict=True):
                    w.mul_(part.view_as(w))
                    scores[name] *= part.view_as(w)
    largest = max(float(score.max()) for score in scores.values()) or 1.0
    return {name: (score / largest).float() for name, score in scores.items()}


def _add(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, first)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@contextmanager
def _differentiable(
    model: nn.Module, graph: Graph, dtype: torch.dtype | None = None
) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """Yield a copy in evaluation mode whose maskable weights require gradients, and these weights by name.

    dtype: the precision of the copy, which then has weights of its own; otherwise they are shared.
    """
    with torch.inference_mode(False), torch.enable_grad():
        bare = make_skeleton(model, real=True)
        if dtype is not None:
            for tensors in (bare.parameters(), bare.buffers()):
                for tensor in tensors:
                    if tensor.is_floating_point():
                        tensor.data = tensor.data.to(dtype, copy=True)
        weights = {name: bare.get_parameter(name).requires_grad_() for name in maskable(graph)}
        yield bare, weights


def _gradients(
    bare: nn.Module,
    weights: dict[str, Tensor],
    loss: Loss,
    batches: Batches,
    temperature: float,
    create_graph: bool,
) -> list[Tensor]:
    """The gradients of the mean loss over batches, in the order of the weights."""
    device = next(iter(weights.values())).device
    total: list[Tensor] | None = None
    count = 0
    for count, batch in enumerate(batches, 1):
        inputs, targets = move(tuple(batch), device)
        output = tree_map_only(
            Tensor, lambda t: t / temperature if _is_floating(t) else t, call(bare, inputs)
        )
        value = loss(output, targets)
        if not value.isfinite():
            raise UserError(
                f"the loss of batch {count} is {value.item()}, expected a finite number; "
                "check the model's weights and the data for NaN and infinity."
            )
        each = torch.autograd.grad(
            value,
            list(weights.values()),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        total = list(each) if total is None else [a + b for a, b in zip(total, each, strict=True)]
    if total is None:
        raise UserError("expected at least one batch to score with, but there is no batch.")
    return [each / count for each in total]
