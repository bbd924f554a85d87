"""Scores for single weights: one number each, not negative, higher means keep. {parameter name: float32 tensor}.

Every score is a square, so that norms and LAMP can be taken over it whatever it is. Biases, norms and embeddings
have none (unless an embedding is tied to a weight); what has one is listed by `maskable`.

    magnitude    w^2
    lookahead    w^2 * before * behind        Park et al., ICLR 2020, arXiv:2002.04809; see neighbours.py
    sequential   lookahead, pruned layer by layer, each seeing what is left of the one before it
    wanda        w^2 * mean square of its input          Sun et al., ICLR 2024, arXiv:2306.11695
    random       the control

The references that need gradients are in gradients.py.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from prunus.errors import UserError, unknown
from prunus.graph import Graph
from prunus.scores import Batches
from prunus.sparse import neighbours, observed, products
from prunus.sparse.neighbours import Depthwise, Flow, Norms, Places, Site
from prunus.surgery import checked_tensors

WeightScores = dict[str, Tensor]
Sides = Literal["both", "before", "behind"]
Conv = Literal["norm", "exact"]
Order = Literal["forward", "backward"]
FAINT = 1e-9  # of the largest score: below all that is not zero but for rounding


def maskable(graph: Graph) -> list[str]:
    """The parameters whose single weights may be pruned: those that multiply activations."""
    return neighbours.multiplying(graph)


@torch.no_grad()
def magnitude(model: nn.Module, graph: Graph) -> WeightScores:
    """w^2."""
    tensors = checked_tensors(model, graph)
    return {name: tensors[name].detach().float().square() for name in maskable(graph)}


def random(graph: Graph, seed: int = 0) -> WeightScores:
    """Uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(graph.shapes[name], generator=generator) for name in maskable(graph)}


@torch.no_grad()
def lookahead(
    model: nn.Module,
    graph: Graph,
    *,
    sides: Sides = "both",
    norms: Norms = "fold",
    conv: Conv = "norm",
    depthwise: Depthwise = "layer",
    activity: Places | None = None,
) -> WeightScores:
    """w^2 * before * behind: the squared change of the three layers around a weight, were it removed alone.

    sides: both, or what feeds it or what reads it alone (the paper's LBP and LFP). norms: batch norms scale what
    passes them (fold), also the one behind the next layer, which makes the score blind to any rescaling (trailing), or
    are left out. conv: kernels' sums of squares, as in the paper (norm), or with the overlap of neighbouring kernels
    (exact, ours; equal where a neighbour is 1x1; in one or two dimensions, and behind a transposed convolution on the
    mean of its places). depthwise: convolutions of one channel each count as layers, or what is beside them sees
    through. activity: what `active` found, for the paper's LAP-act.
    Raises UserError for weights that are not finite. Source: Park et al., equation 4; the rest as the specification.
    """
    _check(sides=(sides, Sides), conv=(conv, Conv), norms=(norms, Norms), depthwise=(depthwise, Depthwise))
    tensors = checked_tensors(model, graph)
    flows = {}
    for lag in products.lags(graph) if conv == "exact" else [(0, 0)]:
        flow = flows[lag] = Flow(graph, norms, depthwise, lag, activity or {})
        flow.run(tensors)
        flow.settle()
    neighbours.warn_opaque(flows[0, 0])
    terms: dict[int, list[Term]] = {}
    for number, site in enumerate(flows[0, 0].sites):
        for lag, flow in flows.items():
            stride = (1, 1, *site.stride)[-2:] if len(site.stride) < 3 else (1, 1)
            far = flows.get(products.scaled_lag(lag, stride))
            fed, flow = (flow, far) if site.transposed else (far, flow)
            if far is not None:
                before, behind = fed.sites[number].before, flow.sites[number].behind
                both = before if sides != "behind" else None, behind if sides != "before" else None
                terms.setdefault(id(site), []).append((*both, 2.0 if any(lag) else 1.0))
    return {
        name: _scored(flows[0, 0], name, terms) for name in maskable(graph) if name in flows[0, 0].squares
    }


@torch.no_grad()
def sequential(
    model: nn.Module,
    graph: Graph,
    choose: Callable[[str, Tensor], Tensor],
    order: Order,
    *,
    norms: Norms = "fold",
    depthwise: Depthwise = "layer",
    activity: Places | None = None,
) -> dict[str, Tensor]:
    """Masks chosen layer by layer, first to last (forward) or last to first (backward), by lookahead scores in which
    the layers already passed hold only what is left of them.

    Waves that are multiplied are seen as in the dense network: queries by keys, and through depthwise convolutions
    that are transparent. choose(name, scores) -> bool mask of the weight. Source: Park et al., section 3 (LAP-forward,
    LAP-backward).
    """
    _check(order=(order, Order), norms=(norms, Norms), depthwise=(depthwise, Depthwise))
    tensors = checked_tensors(model, graph)
    dense = Flow(graph, norms, depthwise, activity=activity or {})
    dense.run(tensors)
    dense.settle()
    neighbours.warn_opaque(dense)
    masks: dict[str, Tensor] = {}
    wanted = set(maskable(graph))

    def decide(name: str) -> None:
        terms = {id(site): [(site.before, site.behind, 1.0)] for site in dense.sites if site.name == name}
        masks[name] = choose(name, _scored(dense, name, terms))

    if order == "backward":
        for site in reversed(dense.sites):
            dense.settle_again(site, masks)
            if site.name in wanted and site.name not in masks:
                decide(site.name)
        return {name: masks[name] for name in maskable(graph) if name in masks}
    numbers = iter(range(len(dense.sites)))

    def go_on(site: Site) -> Tensor:
        dense.sites[next(numbers)].before = site.before
        if site.name in wanted and site.name not in masks:
            decide(site.name)
        return neighbours.masked_view(site, masks.get(site.name))

    Flow(graph, norms, depthwise, activity=activity or {}).run(tensors, go_on)
    return {name: masks[name] for name in maskable(graph) if name in masks}


@torch.no_grad()
def wanda(model: nn.Module, graph: Graph, batches: Batches) -> WeightScores:
    """w^2 times the mean square of its input over batches, the network in evaluation mode.

    Raises UserError if there is no batch, or the model runs otherwise than it was traced.
    """
    tensors = checked_tensors(model, graph)
    flow = Flow(graph, fed=observed.inputs_of(model, graph, batches))
    flow.run(tensors)
    terms = {id(site): [(site.before, None, 1.0)] for site in flow.sites}
    return {name: _scored(flow, name, terms) for name in maskable(graph) if name in flow.squares}


@torch.no_grad()
def active(model: nn.Module, graph: Graph, batches: Batches) -> Places:
    """How often each activation function lets a unit through, over batches: what `lookahead` takes for LAP-act."""
    return observed.activity_of(model, graph, batches)


def _check(**options: tuple[str, Any]) -> None:
    """Raise UserError for an option that is none of its type's values. name=(given, type)."""
    for name, (given, kind) in options.items():
        if given not in get_args(kind):
            raise unknown(name, given, get_args(kind))


# ------------------------------------------------------------------------------------------ forming
Term = tuple[Tensor | None, Tensor | None, float]  # before, behind (both broadcast to the weight), a factor


def _scored(flow: Flow, name: str, terms: Mapping[int, list[Term]]) -> Tensor:
    """w^2 times the sum of terms, of one parameter: made in place of its squares. terms: by id of its sites."""
    sites, score = [site for site in flow.sites if site.name == name], flow.squares[name]
    # squares, to tell apart what a zero before or behind would make equal
    faint = score.clone() if _least(flow, name, sites, terms) == 0 else None
    if len(sites) == 1 and sites[0].weight.numel() == score.numel() and len(terms[id(sites[0])]) == 1:
        factors = [factor for factor in terms[id(sites[0])][0][:2] if factor is not None]
        _multiply(neighbours.view_like(sites[0], score), factors)
    else:
        factors = torch.zeros_like(score)
        for site in sites:
            view = neighbours.view_like(site, factors)
            for before, behind, times in terms[id(site)]:
                view += (1.0 if before is None else before) * (1.0 if behind is None else behind) * times
        score *= factors
    if faint is not None and faint.any():
        most = score.max()
        score += faint * (most / faint.max() * FAINT if most > 0 else 1.0)
    return score.view(flow.graph.shapes[name])


def _least(flow: Flow, name: str, sites: list[Site], terms: Mapping[int, list[Term]]) -> float:
    """The least number that scores are made with beside the squares. Raises UserError if one is not finite."""
    vectors = [each for site in sites for term in terms[id(site)] for each in term[:2] if each is not None]
    numbers = [limit.double() for each in vectors for limit in torch.aminmax(each)]
    limits = torch.stack([*numbers, *(site.norms.sum().double() for site in sites)])
    if not limits.isfinite().all():
        bad = dict.fromkeys(site.name for site in flow.sites if not site.norms.sum().isfinite())
        cause = f", for {', '.join(list(bad)[:3])} is" if bad and name not in bad else ""
        raise UserError(f"scores of {name} are NaN or infinite{cause}; are the model's weights whole?")
    return min(map(float, numbers), default=math.inf)


def _multiply(score: Tensor, factors: list[Tensor]) -> None:
    """score *= each factor; they broadcast to it. A few rows at a time, as memory lies, for a core's cache."""
    if score.dim() == 2 and score.stride(0) == 1:
        score, factors = score.t(), [factor.t() if factor.dim() else factor for factor in factors]
    if not products.is_dense(score):
        for factor in factors:
            score *= factor
        return
    last = products.by_channel_last(score)
    matrix, flat = products.as_matrix(score, last), []
    for factor in factors:
        if factor.dim() and factor[:1].numel() > 1:  # varies along a row
            factor = factor.expand(factor.shape[0], *score.shape[1:])
        flat.append(products.as_matrix(factor, last) if factor.dim() else factor.view(1, 1))
    step = max(1, products.ROWS // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        for factor in flat:
            matrix[start : start + step] *= factor[start : start + step] if len(factor) > 1 else factor
