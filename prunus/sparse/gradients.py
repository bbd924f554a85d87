"""References for single weights that need gradients: {parameter name: tensor}, not negative, higher means keep.

They were made to prune at initialisation, with one threshold for all layers (allocation "pooled").

    snip      change of the loss, to first order               Lee et al., ICLR 2019, arXiv:1810.02340
    grasp     change of the gradient's size, to first order    Wang et al., ICLR 2020, arXiv:2002.07376
    synflow   share of the flow of ones through |weights|      Tanaka et al., NeurIPS 2020, arXiv:2006.05467

The network is in evaluation mode (the papers train norms meanwhile), the model stays as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.errors import UserError
from prunus.graph import Graph, call, make_skeleton
from prunus.scores import Batches
from prunus.sparse.ranking import highest
from prunus.sparse.scores import WeightScores, maskable

Loss = Callable[[Any, Any], Tensor]
TEMPERATURE = 200.0  # GraSP's: softens the answers, so that gradients of confident networks do not vanish


def snip(model: nn.Module, graph: Graph, loss: Loss, batches: Batches) -> WeightScores:
    """(w * dL/dw)^2, of the mean loss over batches. loss(output, targets) -> scalar.

    Raises UserError if there is no batch, or the loss is not a number.
    """
    with _differentiable(model, graph) as (bare, weights):
        gradients = _gradients(bare, weights, loss, batches, 1.0, create_graph=False)
        return {
            n: (w.detach() * g).square().float() for (n, w), g in zip(weights.items(), gradients, strict=True)
        }


def grasp(model: nn.Module, graph: Graph, loss: Loss, batches: Batches) -> WeightScores:
    """w * (H g), from its least up: what would cost the gradient most of its size, to remove, stays.

    H: Hessian and g: gradient of the mean loss over batches of softened answers. loss(output, targets) -> scalar.
    Raises UserError if there is no batch, the loss is not a number, or an operator has no second derivative.
    """
    # fused kernels of attention have no second derivative
    with _differentiable(model, graph) as (bare, weights), sdpa_kernel(SDPBackend.MATH):
        gradients = _gradients(bare, weights, loss, batches, TEMPERATURE, create_graph=True)
        size = sum((g.detach() * g).sum() for g in gradients)
        try:
            products = torch.autograd.grad(
                size, list(weights.values()), allow_unused=True, materialize_grads=True
            )
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise UserError(f"grasp needs second derivatives, and torch has none here: {error}") from None
        scores = {n: (w * h).detach().float() for (n, w), h in zip(weights.items(), products, strict=True)}
    least = min(float(score.min()) for score in scores.values())
    return {name: score - least for name, score in scores.items()}


def synflow(
    model: nn.Module, graph: Graph, kept: float, *, names: Sequence[str] | None = None, rounds: int = 100
) -> WeightScores:
    """w * dR/dw with R the sum of outputs for ones through the absolute weights; needs no data.

    Found in `rounds` steps down to the share `kept` of the weights, as the paper asks: what a step removes scores 0
    from then on. names: the parameters that are up for pruning and scored, all `maskable` ones if not
    given. Raises UserError if the flow is not finite in double precision.
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
        example = tree_map_only(Tensor, lambda t: t.to(device), example)
        with torch.no_grad():
            for parameter in bare.parameters():
                parameter.abs_()
        total = sum(w.numel() for w in weights.values())
        for number in range(1, rounds + 1):
            output = call(bare, example)
            flow = sum(leaf.sum() for leaf in tree_leaves(output) if _is_floating(leaf))
            gradients = torch.autograd.grad(
                flow, list(weights.values()), allow_unused=True, materialize_grads=True
            )
            scores = {n: (w * g).detach() for (n, w), g in zip(weights.items(), gradients, strict=True)}
            if not all(score.isfinite().all() for score in scores.values()):
                raise UserError("synflow: the flow through this network is not finite in double precision.")
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


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@contextmanager
def _differentiable(
    model: nn.Module, graph: Graph, dtype: torch.dtype | None = None
) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """A copy in evaluation mode whose maskable weights require gradients, and these by name.

    dtype: the copy's precision, with weights of its own; else they are shared.
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
    """Of the mean loss over batches, by each weight."""
    device = next(iter(weights.values())).device
    total, count = None, 0
    for count, batch in enumerate(batches, 1):
        inputs, targets = tree_map_only(Tensor, lambda tensor: tensor.to(device), tuple(batch))
        output = tree_map_only(
            Tensor, lambda t: t / temperature if _is_floating(t) else t, call(bare, inputs)
        )
        value = loss(output, targets)
        if not value.isfinite():
            raise UserError(f"the loss of batch {count} is {value.item()}; are model and data whole?")
        each = torch.autograd.grad(
            value,
            list(weights.values()),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        total = list(each) if total is None else [a + b for a, b in zip(total, each, strict=True)]
    if total is None:
        raise UserError("there is no batch to score with.")
    return [each / count for each in total]
