"""Scores for single weights, float32 by parameter name: one number each, not negative, higher means keep.

Every score is a square, so that norms and LAMP can be taken of any. Biases, norms and embeddings have none
(unless an embedding is tied to a weight); `maskable` lists the parameters that have one.

    magnitude    w^2
    lookahead    w^2 * before * behind        Park et al., ICLR 2020, arXiv:2002.04809; see neighbours.py
    sequential   lookahead, pruned layer by layer, each scored with the masks of the layers before it
    wanda        w^2 * mean square of its input          Sun et al., ICLR 2024, arXiv:2306.11695
    random       uniform random numbers, for control

The scores that need gradients are in gradients.py.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from prunus.errors import UserError, unknown
from prunus.graph import Graph, kept_tensors
from prunus.scores import Batches
from prunus.sparse import neighbours, observed, products
from prunus.sparse.neighbours import Depthwise, Flow, Norms, Places, Site
from prunus.surgery import checked_tensors

WeightScores = dict[str, Tensor]
Sides = Literal["both", "before", "behind"]
Conv = Literal["norm", "exact"]
Order = Literal["forward", "backward"]
FAINT = 1e-9  # as a share of the largest score: below every score that is not zero up to rounding


def maskable(graph: Graph) -> list[str]:
    """List the parameters whose single weights may be pruned: those that multiply activations.

    Args:
        graph: The graph of the model.

    Returns:
        Their names, in the order of the model.
    """
    return neighbours.find_multipliers(graph)


@torch.no_grad()
def magnitude(model: nn.Module, graph: Graph) -> WeightScores:
    """Compute w^2.

    Args:
        model: The model.
        graph: Its graph.

    Returns:
        A float32 tensor of its shape for each maskable parameter.
    """
    tensors = checked_tensors(model, graph)
    return {name: tensors[name].detach().float().square() for name in maskable(graph)}


def random(graph: Graph, seed: int = 0) -> WeightScores:
    """Sample scores uniformly from [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(graph.shapes[name], generator=generator) for name in maskable(graph)}


def _all_tensors(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """All tensors that a forward pass may read, those in plain attributes too, such as the anchors of a detector."""
    return kept_tensors(model) | checked_tensors(model, graph)


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
    """Compute w^2 * before * behind, the squared change of three layers if one weight is removed.

    Source: Park et al., Lookahead, arXiv:2002.04809, equation 4; "exact" and graphs other than chains: ours.

    Args:
        model: The model.
        graph: Its graph.
        sides: "both"; or "before" or "behind", with only the layer that feeds it or reads it (the paper's
            LBP, LFP).
        norms: "fold": batch norms scale the signal; "trailing": also the one after the next layer, so that
            the score is invariant to rescaling; "off": they are ignored.
        conv: "norm": sums of squares of kernels, as in the paper; "exact": with the overlap of neighbouring
            kernels in one or two dimensions (for a neighbour of 1x1 the same; after a transposed convolution
            on average).
        depthwise: "layer": depthwise convolutions count as layers; "transparent": their neighbours do
            instead.
        activity: A result of `active`, for the paper's LAP-act.

    Returns:
        A float32 tensor of its shape for each maskable parameter.

    Raises:
        UserError: An option is unknown, or a weight is not finite.
    """
    _check(sides=(sides, Sides), conv=(conv, Conv), norms=(norms, Norms), depthwise=(depthwise, Depthwise))
    tensors = _all_tensors(model, graph)
    flows: dict[products.Lag, Flow] = {}
    for lag in products.lags(graph) if conv == "exact" else [(0, 0)]:
        flow = flows[lag] = Flow(graph, norms, depthwise, lag, activity or {})
        flow.run(tensors)
        flow.resolve()
    neighbours.warn_opaque(flows[0, 0])
    terms: dict[int, list[Term]] = {}
    for number, site in enumerate(flows[0, 0].sites):
        for lag, flow in flows.items():
            stride = (1, 1, *site.stride)[-2:] if len(site.stride) < 3 else (1, 1)
            far = flows.get(products.scale_lag(lag, stride))
            if far is not None:
                fed, read = (flow, far) if site.transposed else (far, flow)
                before, behind = fed.sites[number].before, read.sites[number].behind
                both = before if sides != "behind" else None, behind if sides != "before" else None
                terms.setdefault(id(site), []).append((*both, 2.0 if any(lag) else 1.0))
    return {
        name: _form_score(flows[0, 0], name, terms) for name in maskable(graph) if name in flows[0, 0].squares
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
    """Choose masks layer by layer, by lookahead scores for which the layers already passed are masked.

    Source: Park et al., section 3 (LAP-forward, LAP-backward). Ours: waves that are multiplied are those of
    the dense network (queries by keys, and through transparent depthwise convolutions).

    Args:
        model: The model.
        graph: Its graph.
        choose: choose(name, scores) -> bool mask of the weight, both of its shape.
        order: "forward" (first layer to last) or "backward".
        norms: As for `lookahead`.
        depthwise: As for `lookahead`.
        activity: As for `lookahead`.

    Returns:
        The mask for each maskable parameter.

    Raises:
        UserError: An option is unknown, or a weight is not finite.
    """
    _check(order=(order, Order), norms=(norms, Norms), depthwise=(depthwise, Depthwise))
    tensors = _all_tensors(model, graph)
    dense = Flow(graph, norms, depthwise, activity=activity or {})
    dense.run(tensors)
    dense.resolve()
    neighbours.warn_opaque(dense)
    masks: dict[str, Tensor] = {}
    wanted = set(maskable(graph))

    def decide(name: str) -> None:
        terms: dict[int, list[Term]] = {
            id(site): [(site.before, site.behind, 1.0)] for site in dense.sites if site.name == name
        }
        masks[name] = choose(name, _form_score(dense, name, terms))

    if order == "backward":
        for site in reversed(dense.sites):
            dense.resolve_again(site, masks)
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
    """Compute w^2 times the mean square of its input over batches. Source: Sun et al., arXiv:2306.11695.

    Args:
        model: The model, evaluated in evaluation mode.
        graph: Its graph.
        batches: Pairs (inputs, targets), of which only the inputs are used.

    Returns:
        A float32 tensor of its shape for each maskable parameter.

    Raises:
        UserError: There is no batch, or the model runs other products than when it was traced.
    """
    tensors = _all_tensors(model, graph)
    flow = Flow(graph, fed=observed.measure_inputs(model, graph, batches))
    flow.run(tensors)
    terms: dict[int, list[Term]] = {id(site): [(site.before, None, 1.0)] for site in flow.sites}
    return {name: _form_score(flow, name, terms) for name in maskable(graph) if name in flow.squares}


@torch.no_grad()
def active(model: nn.Module, graph: Graph, batches: Batches) -> Places:
    """Measure how often each activation function is above zero, for the LAP-act of `lookahead`.

    Args:
        model: The model, evaluated in evaluation mode.
        graph: Its graph.
        batches: Pairs (inputs, targets), of which only the inputs are used.

    Returns:
        The share (0 to 1) for each unit, by the place of the activation function in graph.ops.

    Raises:
        UserError: There is no batch, or the model runs other activation functions than when it was traced.
    """
    return observed.measure_activity(model, graph, batches)


def _check(**options: tuple[str, Any]) -> None:
    """Raise UserError for an option that is not a value of its type. name=(given, type)."""
    for name, (given, kind) in options.items():
        if given not in get_args(kind):
            raise unknown(name, given, get_args(kind))


# ------------------------------------------------------------------------------------------ forming
Term = tuple[Tensor | None, Tensor | None, float]  # before, behind (both broadcast to the weight), a factor


def _form_score(flow: Flow, name: str, terms: Mapping[int, list[Term]]) -> Tensor:
    """Multiply the squares of a parameter, in place, by the sum of its terms. terms: by id of its sites."""
    sites, score = [site for site in flow.sites if site.name == name], flow.squares[name]
    # the squares, to rank weights that a zero before or behind would make equal
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
    """The least factor of the squares in the scores. Raises UserError if one is not finite."""
    vectors = [each for site in sites for term in terms[id(site)] for each in term[:2] if each is not None]
    numbers = [limit.double() for each in vectors for limit in torch.aminmax(each)]
    limits = torch.stack([*numbers, *(_norms(site).sum().double() for site in sites)])
    if not limits.isfinite().all():
        bad = dict.fromkeys(site.name for site in flow.sites if not _norms(site).sum().isfinite())
        cause = f", for {', '.join(list(bad)[:3])} is" if bad and name not in bad else ""
        raise UserError(f"scores of {name} are NaN or infinite{cause}; check the model's weights.")
    return min(map(float, numbers), default=math.inf)


def _norms(site: Site) -> Tensor:
    assert site.norms is not None, "every site starts a wave"
    return site.norms


def _multiply(score: Tensor, factors: list[Tensor]) -> None:
    """score *= each factor, a few rows at a time in memory order, to fit a core's cache."""
    if score.dim() == 2 and score.stride(0) == 1:
        score, factors = score.t(), [factor.t() if factor.dim() else factor for factor in factors]
    if not products.is_dense(score):
        for factor in factors:
            score *= factor
        return
    last = products.by_channel_last(score)
    matrix, flat = products.as_matrix(score, last), list[Tensor]()
    for factor in factors:
        if factor.dim() and factor[:1].numel() > 1:  # varies along a row
            factor = factor.expand(factor.shape[0], *score.shape[1:])
        flat.append(products.as_matrix(factor, last) if factor.dim() else factor.view(1, 1))
    step = max(1, products.ROWS // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        for factor in flat:
            matrix[start : start + step] *= factor[start : start + step] if len(factor) > 1 else factor
