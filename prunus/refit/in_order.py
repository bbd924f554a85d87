"""Each product fitted in turn, on the inputs that the small model gives it.

Both models run side by side on the same examples and stop at each product. The product of the small model is fitted
to the output of the original's, for the units that stay; then both go on. So errors made above are made good below.
Batch norms get the statistics of their new inputs on the way. Source: ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PruningError
from prunus.graph import (
    Graph,
    Keep,
    Places,
    axes,
    make_skeleton,
    named_tensors,
    quiet_forward,
    take,
)
from prunus.inputs import count_examples, model_device, move
from prunus.progress import Step, silent
from prunus.refit.batches import read_batches
from prunus.refit.fitted import Fitted, Layer, name_part
from prunus.refit.products import Product
from prunus.refit.sites import Sites, find_sites
from prunus.refit.systems import RIDGE, System, check_ridge
from prunus.refit.walk import Stop, Walk
from prunus.surgery import Structure


def fit_in_order(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    keep: Keep,
    batches: Iterable[Any],
    *,
    layers: bool = True,
    ridge: float = RIDGE,
    progress: Callable[..., AbstractContextManager[Step]] = silent,
) -> Fitted:
    """Fit the products of a small model in place to the outputs of the original, whatever blocks were skipped.

    All batches are held at once, in both models: as much memory as one pass of each over all of them, without
    gradients.

    Args:
        model: The traced model; it is not changed.
        small: What `shrink` made of it for the same keep; changed in place.
        graph: The graph of `model`.
        keep: axis -> indices that stay.
        batches: Inputs as the model takes them.
        layers: Whether to fit products; otherwise batch norms alone get the statistics of their inputs.
        ridge: How much the weights are held to the ones that were cut, as a share of the mean diagonal of the
            equations.
        progress: Shows the products, such as `progress.bar`.

    Returns:
        What was fitted, and what was left.

    Raises:
        UserError: There is no batch, the model cannot be called with one, or `ridge` is no number from 0.
        PruningError: A number is not finite, or the two models run different products.
    """
    device = model_device(model)
    check_ridge(ridge)
    inputs = [move(each, device) for each in read_batches(batches)]
    bare, bare_small = make_skeleton(model, real=True), make_skeleton(small, real=True)
    keep = graph.check_keep(keep)
    structure, lost = Structure.of(graph, keep, small), graph.blocks.lost(keep)
    names = structure.originals(graph.layouts)
    sites = find_sites(graph, small, names)
    fitting = _Fitting(graph, Places(keep), sites, layers, ridge)
    with ExitStack() as passes, progress("repairing", sum(map(len, sites.outputs.values()))) as step:
        passes.enter_context(quiet_forward())
        pairs = [
            (
                passes.enter_context(Walk(bare, batch, without=lost)),
                passes.enter_context(Walk(bare_small, batch, names)),
            )
            for batch in inputs
        ]
        while _are_alike(stops := [(original.next(), cut.next()) for original, cut in pairs]):
            step(fitting.at(stops))
    ours, theirs = named_tensors(small), named_tensors(bare_small)
    for name in structure.renamed(graph.statistics):
        ours[name].copy_(theirs[name])
    return Fitted(fitting.layers, sites.left, sum(map(count_examples, inputs)))


def _are_alike(stops: list[tuple[Stop | None, Stop | None]]) -> bool:
    """Whether all passes have stopped at the same place; False if all have ended.

    Raises PruningError otherwise.
    """
    names = {stop and stop.name for pair in stops for stop in pair}
    if len(names) > 1:
        places = " and ".join(sorted(str(name or "its end") for name in names))
        raise PruningError(
            f"the original and the small model, on the same examples, stopped at {places}; repair needs models that "
            "run the same operators whatever the data are. Leave it off for this one."
        )
    return names != {None}


class _Fitting:
    """Fits the products at which the passes stop.

    Args:
        graph: The graph of the original.
        places: The places that stay.
        sites: Its products.
        fits: Whether products are fitted, not norms alone.
        ridge: How much the weights are held to the ones that were cut.
    """

    def __init__(self, graph: Graph, places: Places, sites: Sites, fits: bool, ridge: float):
        self.graph, self.places, self.sites, self.fits, self.ridge = graph, places, sites, fits, ridge
        self.layers: dict[str, Layer] = {}
        self._met: Counter[str] = Counter()

    def at(self, stops: list[tuple[Any, Any]]) -> int:
        """Fit the product at which all passes have stopped; the number of products that they have met, 0 or 1."""
        name, originals, cuts = stops[0][0].name, [a for a, _ in stops], [b for _, b in stops]
        if originals[0].product is None:
            self._renew(name, originals, cuts)
            return 0
        number = self._met[name]
        self._met[name] += 1
        same = all(a.x.shape == b.x.shape and torch.equal(a.x, b.x) for a, b in stops)
        if same or not self.fits or name in self.sites.left:
            return 1
        if number >= len(self.sites.outputs[name]):
            self.sites.left[name] = "the trace has fewer products with it"
            return 1
        for each in originals:
            each.out = each.run()
        dims = self.sites.outputs[name][number]
        wanted = self._cut(originals, dims)
        if wanted is None:
            self.sites.left[name] = "what stays of its output depends on the size of the batch"
            return 1
        key = name_part(name, number, len(self.sites.outputs[name]))
        self.layers[key] = self._fit(
            [each.product for each in cuts], wanted, self.sites.normalised[name][number]
        )
        return 1

    def _cut(self, originals: list[Stop], dims: list[Any]) -> list[Tensor] | None:
        """The original's outputs at the places that stay; None if these are not known for a batch."""
        found = []
        for each in originals:
            # torch runs the same product as one of matrices or of a batch of them, so only the last dimensions agree
            rank = min(len(dims), each.out.dim())
            where = self.places.stay(dims, each.out.device)
            sizes = zip(where[-rank:], dims[-rank:], each.out.shape[-rank:], strict=True)
            known = all(stay is None or axes.size(layout) == size for stay, layout, size in sizes)
            if not known or any(stay is not None for stay in where[:-rank]):
                return None
            found.append(take(each.out, [*[None] * (each.out.dim() - rank), *where[-rank:]]))
        return found

    def _fit(self, products: list[Product], wanted: list[Tensor], normalised: bool) -> Layer:
        """Fit one product to outputs, one for each batch."""
        bias = products[0].bias
        system = System(centred=normalised or bias is not None)
        before = products[0].matrix()
        there = sum(product.count(out) for product, out in zip(products, wanted, strict=True))
        spacing = products[0].spacing(there, before.shape[2])
        for number, (product, out) in enumerate(zip(products, wanted, strict=True)):
            for u, y in product.equations(out, spacing, number):
                system.add(u.float(), y.float())
        weight, shift = system.solve(before, self.ridge)
        products[0].write(weight)
        if bias is not None:
            bias.copy_(shift.reshape(bias.shape))
        return Layer(system.unexplained(before), system.unexplained(weight), system.count, before.shape[2])

    def _renew(self, name: str, originals: list[Stop], cuts: list[Stop]) -> None:
        """Give a batch norm the statistics of its inputs, if they are not the original's."""
        layouts = self.graph.layouts[name]
        if all(
            torch.equal(b.x, a.x.index_select(1, stay) if stay is not None else a.x)
            for a, b in zip(originals, cuts, strict=True)
            for stay in self.places.stay(layouts, a.x.device)
        ):
            return
        assert cuts[0].norm is not None
        _, mean, variance = cuts[0].norm
        flat = [each.x.transpose(0, 1).flatten(1).float() for each in cuts]
        counts = torch.tensor([each.shape[1] for each in flat], dtype=torch.float64, device=mean.device)
        means = torch.stack([each.mean(1) for each in flat], 1).double()
        squares = torch.stack(
            [(each - each.mean(1, keepdim=True)).square_().sum(1) for each in flat], 1
        ).double()
        total = counts.sum()
        centre = (means * counts).sum(1) / total
        spread = squares.sum(1) + (counts * (means - centre[:, None]).square()).sum(1)
        mean.copy_(centre)
        variance.copy_(spread / (total - 1).clamp_min(1))
