"""The second moments of the inputs of a model's products, from which the weights of any cut follow in closed form.

With C = E[u u^T] of the original's inputs u, gathered once, the weight for the columns K and the rows R that stay is
W' = (W_R C_K + r W_RK) (C_KK + r I)^-1: the best for inputs that the cut has not changed above. So it is somewhat worse
than fitting in order, but needs neither data nor a forward pass. Source: ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph import Graph, Keep, Layout, axes, make_skeleton, named_tensors, quiet_forward
from prunus.inputs import count_examples, model_device, move
from prunus.progress import Step, silent
from prunus.refit.batches import read_batches
from prunus.refit.curves import Curve, Curves
from prunus.refit.elimination import Reader, eliminate
from prunus.refit.fitted import Fitted, Layer, name_part
from prunus.refit.products import Product
from prunus.refit.sites import SHARED, Sites, find_sites
from prunus.refit.systems import RIDGE, check_finite, check_ridge, solve
from prunus.refit.walk import Walk, address

BORROWED = "it reads what another product reads, but not in every batch"
LEAST_RIDGE = 1e-6  # for curves: what sums of products in float32 cannot tell from nothing


@dataclass
class _Sums:
    """The moments of the inputs of a product, or of several that read the same.

    Args:
        count: The number of equations n.
        squares: u^T u (G, K, K).
        sums: The sum of u (G, K).
    """

    count: int = 0
    squares: Tensor | float = 0.0
    sums: Tensor | float = 0.0

    def add(self, product: Product, out: Tensor, batches: int, number: int) -> None:
        """Add the inputs of one batch of several."""
        _, _, columns = product.shape
        spacing = product.spacing(batches * product.count(out), columns)
        for u, _ in product.equations(out, spacing, number):
            u = u.float()
            self.count += u.shape[1]
            self.squares = self.squares + (u.mT @ u).double()
            self.sums = self.sums + u.sum(1).double()


@dataclass
class _Layer:
    """A product with a parameter, and the moments of its inputs.

    Args:
        product: The product, without data.
        name: The parameter.
        inputs: The layouts of the input's dimensions.
        outputs: Those of the output's.
        centred: Whether means are taken off.
        read: The moments.
        borrows: Whether another layer adds to them.
    """

    product: Product
    name: str
    inputs: Sequence[Layout]
    outputs: Sequence[Layout]
    centred: bool
    read: _Sums
    borrows: bool

    @property
    def count(self) -> int:
        return self.read.count

    @property
    def squares(self) -> Tensor:
        return torch.as_tensor(self.read.squares)

    @property
    def sums(self) -> Tensor:
        return torch.as_tensor(self.read.sums)


@dataclass(frozen=True)
class _Cut:
    """The weights of a product for a cut: G' groups and in each O' outputs and K' columns stay.

    Args:
        layer: The product, with the moments of its inputs.
        groups: The groups that stay (G',).
        rows: The outputs that stay (G', O').
        columns: The columns that stay (G', K').
        squares: The moments of all columns (G', K, K).
        mean: The means of all columns (G', K).
        weight: The original's weights of the outputs that stay (G', O', K).
        after: The new ones (G', O', K').
    """

    layer: _Layer
    groups: Tensor
    rows: Tensor
    columns: Tensor
    squares: Tensor
    mean: Tensor
    weight: Tensor
    after: Tensor

    def describe(self) -> Layer:
        """The shares of the output that are left unexplained, with the old weights and with the new ones."""
        where = self.columns[:, None, :].expand_as(self.after)
        lost, missed = self.weight.scatter(2, where, 0.0), self.weight.scatter_add(2, where, -self.after)
        whole = max(self._energy(self.weight), 1e-300)
        before, after = (max(0.0, self._energy(each)) / whole for each in (lost, missed))
        return Layer(before, after, self.layer.count, self.columns.shape[1])

    def _energy(self, weight: Tensor) -> float:
        """The sum of the squared outputs of weights for all columns (G', O', K)."""
        return float((weight @ self.squares * weight).sum())


class Moments:
    """The second moments of the inputs of a model's products.

    They take 8 bytes times the square of the number of weights of an output, for each product: 5 MB for ResNet-20,
    1.1 GB for ResNet-50. Products that read the same (queries, keys and values) share theirs. Batches are read
    one after the other.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        batches: Inputs as the model takes them: a tensor, a tuple or a dict each.
        progress: Shows the batches, such as `progress.bar`.

    Raises:
        UserError: There is no batch, or the model cannot be called with one.
        PruningError: An input is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        batches: Iterable[Any],
        *,
        progress: Callable[..., AbstractContextManager[Step]] = silent,
    ):
        self.graph = graph
        self._layers: dict[tuple[Any, ...], _Layer] = {}
        bare = make_skeleton(model, real=True)
        self._parameters = {n: t for n, t in named_tensors(bare).items() if isinstance(t, nn.Parameter)}
        sites = find_sites(graph, model)
        self.left = {name: why for name, why in sites.left.items() if why != SHARED}
        given, device = read_batches(batches), model_device(model)
        self.examples = sum(map(count_examples, given))
        with progress("gathering moments", len(given)) as step:
            for number, inputs in enumerate(given):
                with quiet_forward(), Walk(bare, move(inputs, device)) as walk:
                    self._gather(walk, sites, len(given), number)
                step(1)
        parts = Counter(layer.name for layer in self._layers.values())
        shared = {name: SHARED for name in sites.left if sites.left[name] == SHARED and parts[name] > 1}
        self.left |= shared  # they read parts that overlap
        gone = shared.keys() | {name for name, why in self.left.items() if why == BORROWED}
        self._layers = {key: layer for key, layer in self._layers.items() if layer.name not in gone}
        for layer in self._layers.values():
            check_finite(layer.squares)

    def _gather(self, walk: Walk, sites: Sites, batches: int, number: int) -> None:
        """Add the inputs of the products that a pass over one batch of several meets."""
        met: Counter[str] = Counter()
        last: tuple[Product, _Sums] | None = None  # it holds the input, whose memory is not used again
        while stop := walk.next():
            if stop.product is None or stop.name in self.left:
                continue
            place = met[stop.name]
            met[stop.name] += 1
            if place >= len(sites.outputs[stop.name]):
                self.left[stop.name] = "the trace has fewer products with it"
                continue
            stop.out = stop.run()
            known = last[1] if last and stop.product.reads_same(last[0]) else None
            layer = self._layer(stop.name, stop.product, sites, place, known)
            if layer.read is known:
                continue  # the product before has added them
            if layer.borrows:
                self.left[stop.name] = BORROWED
                continue
            layer.read.add(stop.product, stop.out, batches, number)
            last = stop.product, layer.read

    def _layer(self, name: str, product: Product, sites: Sites, place: int, known: _Sums | None) -> _Layer:
        """The layer of a product, which is new when it is met for the first time.

        known: The moments of the product before it, if that reads the same.
        """
        key = name, product.weight.storage_offset(), product.shape
        if key not in self._layers:
            centred = sites.normalised[name][place] or product.bias is not None
            layouts = sites.inputs[name][place], sites.outputs[name][place]
            self._layers[key] = _Layer(
                product.without_data(), name, *layouts, centred, known or _Sums(), known is not None
            )
        return self._layers[key]

    @torch.no_grad()
    def weights(self, keep: Keep, ridge: float = RIDGE) -> dict[str, Tensor]:
        """Compute the parameters for a cut.

        Args:
            keep: axis -> indices that stay.
            ridge: How much the weights are held to the model's own, as a share of the mean diagonal of the moments.

        Returns:
            name -> tensor of full size, of which the cut takes its part, for the parameters that change.

        Raises:
            UserError: `keep` does not fit the graph, or `ridge` is no number from 0.
        """
        found: dict[str, Tensor] = {}
        for cut in self._cuts(keep, ridge):
            self._write(cut, found)
        return found

    @torch.no_grad()
    def curves(self, ridge: float = RIDGE) -> Curves:
        """Find in which order the units of each axis best go, and how much of the outputs is then left unexplained.

        Units go one by one, see elimination.py. All products that read an axis count alike, each by the variance of its
        output (by its squares where nothing takes care of the mean), and what `ridge` holds back is part of the loss.
        Units that a product loses together with their outputs, as a depthwise convolution does, are no loss to it.

        Args:
            ridge: How much weights are held to the model's own, as a share of the mean diagonal of the moments.

        Returns:
            The curves. An axis that no product with moments reads has none.

        Raises:
            UserError: `ridge` is no number from 0.
        """
        check_ridge(ridge)
        found = Curves(left={name: self._why_unread(name) for name in self.graph.axes})
        for name, axis in self.graph.axes.items():
            read = [readers for layer in self._layers.values() if (readers := _readers(layer, axis, ridge))]
            if read:
                order, losses = eliminate([reader for readers in read for reader in readers], axis.size)
                found.axes[name] = Curve(order, losses, len(read))
                del found.left[name]
        return found

    def _why_unread(self, axis: str) -> str:
        """Why an axis has no curve, if it has none."""
        reasons = (
            f"{member.tensor} reads it, but {self.left[member.tensor]}"
            for member in self.graph.members(axis)
            if member.role == "consumes" and member.tensor in self.left
        )
        return next(reasons, "no product with a weight reads it")

    @torch.no_grad()
    def fit(self, keep: Keep, ridge: float = RIDGE) -> tuple[dict[str, Tensor], Fitted]:
        """Compute the parameters for a cut, and what they leave unexplained of the outputs.

        Args:
            keep: As in `weights`.
            ridge: As in `weights`.

        Returns:
            What `weights` returns; and what was fitted, and what was left.

        Raises:
            UserError: As in `weights`.
        """
        found: dict[str, Tensor] = {}
        layers: dict[str, Layer] = {}
        parts, met = Counter(layer.name for layer in self._layers.values()), Counter[str]()
        for cut in self._cuts(keep, ridge):
            name = cut.layer.name
            self._write(cut, found)
            layers[name_part(name, met[name], parts[name])] = cut.describe()
            met[name] += 1
        return found, Fitted(layers, dict(self.left), self.examples)

    def _cuts(self, keep: Keep, ridge: float) -> Iterator[_Cut]:
        """The new weights of the products whose inputs a cut makes fewer."""
        check_ridge(ridge)
        keep = self.graph.check_keep(keep)
        for layer in self._layers.values():
            cut = _solve_cut(layer, keep, ridge)
            if cut is not None:
                yield cut

    def _write(self, cut: _Cut, found: dict[str, Tensor]) -> None:
        """Write the weights of one product into tensors of full size."""
        product, whole = cut.layer.product, cut.layer.product.matrix()
        whole[cut.groups[:, None, None], cut.rows[:, :, None], cut.columns[:, None, :]] = cut.after
        replace(product, weight=self._own(product.weight, found)).write(whole)
        if product.bias is not None:
            shift = (cut.weight @ cut.mean.unsqueeze(2)).squeeze(2)
            shift -= (cut.after @ cut.mean.gather(1, cut.columns).unsqueeze(2)).squeeze(2)
            bias = self._own(product.bias, found)
            bias[(cut.groups[:, None] * whole.shape[1] + cut.rows).flatten()] += shift.flatten().to(bias)

    def _own(self, view: Tensor, found: dict[str, Tensor]) -> Tensor:
        """The view into a parameter of `found` that corresponds to a view into the model's own parameter."""
        name, whole = next(
            (n, t) for n, t in self._parameters.items() if t.numel() and address(t) == address(view)
        )
        if name not in found:
            found[name] = whole.detach().clone()
        offset = view.storage_offset() - whole.storage_offset()
        return found[name].as_strided(view.shape, view.stride(), offset)


def _readers(layer: _Layer, axis: axes.Axis, ridge: float) -> list[Reader]:
    """The groups of a product that lose inputs, but not all of them, with units of an axis; ready to lose them."""
    product, whole = layer.product, layer.product.matrix()  # (G, O, K)
    groups, per_group = len(whole), whole.shape[2]
    taps = product.weight.shape[2:].numel() if product.is_convolution else 1
    of_groups, of_channels = product.channels(layer.inputs)
    places = axes.units(of_channels).get(axis)  # (U, n)
    apart = groups if of_groups == 1 else 1  # groups that stand one after the other in the channels
    if places is None or axes.size(of_channels) * taps != per_group * apart:
        return []
    every = layer.squares
    if layer.centred:
        mean = layer.sums / layer.count
        every = every - layer.count * mean.unsqueeze(2) * mean.unsqueeze(1)
    held = max(ridge, LEAST_RIDGE) * every.diagonal(dim1=1, dim2=2).mean(1)
    every = every + held[:, None, None] * torch.eye(per_group, dtype=every.dtype, device=every.device)
    total = float((whole @ every * whole).sum())
    found, channels = [], per_group // taps
    for group in range(groups if total > 0 else 0):
        there = places // channels == (group if apart > 1 else 0)
        units, counts = there.nonzero()[:, 0].unique_consecutive(return_counts=True)
        if not len(units) or len(counts.unique()) > 1 or int(counts[0]) == channels:
            continue
        columns = (places[there] % channels).view(len(units), -1, 1) * taps + torch.arange(taps)
        columns, units = columns.flatten(1).to(every.device), units.to(every.device)
        found.append(Reader(every[group], whole[group].T, units, columns, 1 / total))
    return found


def _solve_cut(layer: _Layer, keep: Keep, ridge: float) -> _Cut | None:
    """The new weights of a product; None if its inputs stay whole, or if what stays of them is not known."""
    product, whole = layer.product, layer.product.matrix()  # (G, O, K)
    taps = product.weight.shape[2:].numel() if product.is_convolution else 1
    read = _stay(product, layer.inputs, whole.shape[2] // taps, keep)
    written = _stay(product, layer.outputs, whole.shape[1], keep)
    if read is None or written is None or read[1].shape[1] == whole.shape[2] // taps:
        return None
    groups, channels = (each.to(whole.device) for each in read)
    rows = written[1].to(whole.device)
    columns = (channels[:, :, None] * taps + torch.arange(taps, device=whole.device)).flatten(1)
    every = torch.arange(len(groups), device=whole.device)
    squares, mean = (
        layer.squares[groups],
        layer.sums[groups] / layer.count,
    )
    if layer.centred:
        squares = squares - layer.count * mean.unsqueeze(2) * mean.unsqueeze(1)
    weight = whole[groups][every[:, None], rows]  # (G', O', K)
    from_kept = squares[every[:, None], columns]  # (G', K', K)
    places = every[:, None, None], columns[:, :, None], columns[:, None, :]
    before = weight.gather(2, columns[:, None, :].expand(-1, weight.shape[1], -1))
    after = solve(squares[places], from_kept @ weight.mT, before, ridge)
    return _Cut(layer, groups, rows, columns, squares, mean, weight, after)


def _stay(
    product: Product, dims: Sequence[Layout], per_group: int, keep: Keep
) -> tuple[Tensor, Tensor] | None:
    """The groups (G',) of a product that stay, and in each the channels (G', n); None if they are not known.

    They are not known where the channels stand in one dimension with something else, such as the batch.
    """
    of_groups, of_channels = product.channels(dims)
    channels = axes.positions(of_channels, keep)
    if of_groups != 1:
        groups = axes.positions(of_groups, keep)
        known = axes.size(of_channels) == per_group and axes.size(of_groups) == product.groups
        return (groups, channels.expand(len(groups), -1)) if known else None
    if axes.size(of_channels) != per_group * product.groups:
        return None
    groups, counts = (channels // per_group).unique_consecutive(return_counts=True)
    return (groups, (channels % per_group).view(len(groups), -1)) if counts.unique().numel() == 1 else None
