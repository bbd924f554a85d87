"""What stands before and behind every weight: the squared network, run once over a graph's operators.

To remove one weight w from a product changes what the three layers around it compute, all else linear and the inputs
white, by |w| * sqrt(before * behind): `before` is the squared norm of what feeds the weight's input, `behind` that of
what reads its output (Park et al., Lookahead, ICLR 2020, arXiv:2002.04809, equation 4). In a chain these are the row
norm of the layer before and the column norm of the layer behind. On any graph they are found by one pass over its
operators: every product ends the waves that enter it and starts one that holds its own row norms; a sum of waves is
as if their inputs were stacked; and by the chain rule `behind` is the derivative, by a wave, of all that products
read of it. Source: the squared network is ours (specification, 5.2).

squares.py has what other operators do to waves, products.py what products do.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from prunus.graph import Graph, Op, Tag, Untracked, operators, tensors_in
from prunus.sparse import products, squares
from prunus.sparse.products import Lag
from prunus.sparse.squares import Wave, shapes_of

Norms = Literal["fold", "trailing", "off"]
Depthwise = Literal["layer", "transparent"]
Places = Mapping[int, Tensor]  # something for operators, by their place in graph.ops
Shaped = Callable[[Tensor], Tensor]  # numbers of a weight's outputs -> the same, to be broadcast to it


@dataclass(eq=False)
class Site:
    """One product with one weight; `before` and `behind` broadcast to `weight`."""

    name: str  # the parameter
    place: int  # of the product in graph.ops
    weight: Tensor  # the part of the parameter that is used, as the operator sees it: a view of `whole`
    whole: Tensor  # the parameter, or what is computed from it alone, element by element
    before: Tensor
    behind: Tensor | None = None
    norms: Tensor | None = None  # squared, of each output
    stride: Lag = ()  # of a convolution
    transposed: bool = False
    computed: bool = False


@dataclass(eq=False)
class _Leaf:
    """A wave that starts at a product, to take the derivative by."""

    value: Tensor
    positions: int  # elements that each number stands for
    site: Site | None
    shaped: Shaped


@dataclass(eq=False)
class _Sink:
    """What is read of a wave: `weights`, shaped like its value, for each element of it."""

    value: Tensor
    weights: Tensor
    site: Site | None = None
    again: Callable[[Tensor], Tensor] | None = None  # `weights` if the site held another weight


@dataclass(eq=False)
class Flow:
    """One pass: `run`, then `settle`, then `sites` is complete.

    lag: what is followed is how an element goes with the one this far from it in space; at lag 0 that is its square.
    activity: what waves are multiplied with behind an operator. fed: by place of a product, what to take for `before`.
    opaque: operators that nothing is known of. squares: of the weights met, but for what `decide` changed.
    """

    graph: Graph
    norms: Norms = "fold"
    depthwise: Depthwise = "layer"
    lag: Lag = (0, 0)
    activity: Places = field(default_factory=dict)
    fed: Places = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    leaves: list[_Leaf] = field(default_factory=list)
    sinks: list[_Sink] = field(default_factory=list)
    squares: dict[str, Tensor] = field(default_factory=dict)
    scratch: Tensor | None = None  # memory that squares are written to which are not kept

    def run(self, tensors: Mapping[str, Tensor], decide: Callable[[Site], Tensor] | None = None) -> None:
        """Follow the waves through all operators. tensors: the model's, by name, as they act.

        decide: given a site whose `before` is known, the weight to go on with (for passes that prune on the way).
        """
        self.decide = decide
        self.white = float(not any(self.lag))  # what is independent everywhere goes with itself alone
        self.values: dict[Tag, Any] = {
            tag: tensors[name].detach() for tag, name in self.graph.tensors.items()
        }
        self.owners: dict[int, list[tuple[str, Tensor, bool]]] = {}
        for name in self.graph.parameters:
            self.owners.setdefault(memory(tensors[name]), []).append((name, tensors[name].detach(), False))
        self.trailing = self._trailing_norms() if self.norms == "trailing" else {}
        with torch.enable_grad():
            for place, op in enumerate(self.graph.ops):
                self._step(place, op)
            for tag in self.graph.outputs:
                self.read(self.values.get(tag))

    def settle(self) -> None:
        """Find `behind` of every site."""
        self._settle([leaf for leaf in self.leaves if leaf.site is not None])

    def settle_again(self, site: Site, masked: Mapping[str, Tensor]) -> None:
        """Find `behind` of one site while others hold what masks leave of them."""
        for sink in self.sinks:
            if sink.site is not None and sink.site.name in masked:
                sink.weights = sink.again(masked_view(sink.site, masked[sink.site.name])).detach()
                sink.site = None  # it stays so
        self._settle([leaf for leaf in self.leaves if leaf.site is site])

    def _settle(self, leaves: list[_Leaf]) -> None:
        """The derivative of all that is read by each leaf's wave. What nothing reads counts 1."""
        used = [sink for sink in self.sinks if sink.value.requires_grad]
        values, weights = [sink.value for sink in used], [sink.weights for sink in used]
        wanted = [leaf.value for leaf in leaves]
        found = torch.autograd.grad(values, wanted, weights, retain_graph=True, allow_unused=True)
        for leaf, each in zip(leaves, found, strict=True):
            behind = torch.full_like(leaf.value, self.white) if each is None else each / leaf.positions
            leaf.site.behind = leaf.shaped(behind.detach())

    # ------------------------------------------------------------------------- what products call
    def site(
        self, place: int, w: Tensor, before: Tensor, stride: Lag = (), transposed: bool = False
    ) -> tuple[Site | None, Tensor]:
        """A weight met: its site, if it is a view of a parameter and not computed, and the weight to go on with."""
        found = self._owner(w)
        if found is None:
            return None, w
        name, whole, computed = found
        site = Site(
            name, place, w, whole, before.detach(), stride=stride, transposed=transposed, computed=computed
        )
        self.sites.append(site)
        return site, self.decide(site) if self.decide else w

    def squared(self, w: Tensor, site: Site | None = None) -> Tensor:
        """Where to write the squares of w: kept for the parameter of the site, if there is one."""
        precision = torch.float64 if w.dtype == torch.float64 else torch.float32
        if site is not None and self.decide is None and not any(self.lag):
            if site.name not in self.squares:
                make = torch.empty_like if w.numel() == site.whole.numel() else torch.zeros_like
                self.squares[site.name] = make(site.whole, dtype=precision)
            return view_like(site, self.squares[site.name])
        if self.scratch is None or self.scratch.numel() < w.numel() or self.scratch.dtype != precision:
            self.scratch = torch.empty(w.numel(), dtype=precision, device=w.device)
        return self.scratch.as_strided(w.shape, torch.empty_like(w, device="meta").stride())

    def leaf(self, produced: Tensor, shape: tuple[int, ...], site: Site | None, shaped: Shaped) -> Tensor:
        """A wave starts, of `produced` numbers over an activation of `shape`; its value."""
        value = produced.detach().requires_grad_()
        self.leaves.append(_Leaf(value, math.prod(shape) // max(1, value.numel()), site, shaped))
        if site is not None:
            site.norms = value.detach()
        return value

    def sink(self, x: Wave, read: Tensor, site: Site | None, again: Callable[[Tensor], Tensor]) -> None:
        """A product reads of x the numbers `read`, which broadcast to its shape; again(w): had it the weight w."""

        def weights(read: Tensor) -> Tensor:
            return products.fit(read, x).detach()

        self.sinks.append(_Sink(x.value, weights(read), site, lambda w: weights(again(w))))

    def read(self, x: Any) -> None:
        """All of x matters, alike."""
        if isinstance(x, Wave):
            self.sinks.append(_Sink(x.value, torch.full_like(x.value, self.white * x.repeats)))

    # --------------------------------------------------------------------------------- one operator
    def _step(self, place: int, op: Op) -> None:
        args, names = self._resolved(op.inputs[0]), op.inputs[1]
        kwargs = dict(zip(names, self._resolved(list(names.values())), strict=True))
        given = list(operators.flat([*args, *kwargs.values()]))
        if not any(op.results):  # the trace does not follow it
            unknown = any(isinstance(arg, Wave) for arg in given) and not op.is_a(operators.WITHOUT_SIGNAL)
            out = self._end(op, args, kwargs) if unknown else []
        elif op.is_a(operators.PRODUCT):
            out = self._product(place, op, args, kwargs)
        elif any(isinstance(arg, Wave) for arg in given):
            out = self._carry(place, op, args, kwargs)
        elif any(isinstance(arg, Untracked) for arg in given) or not tensors_in(given):
            out = [Untracked(torch.Size(shape)) for shape in shapes_of(op)]
        else:  # made from parameters alone
            out = op.func(*args, **kwargs)
            self._adopt(out, given)
        out = out if isinstance(out, list) or type(out) is tuple else [out]
        self.values.update(
            (tag, value) for tag, value in zip(op.results, out, strict=False) if tag is not None
        )

    def _owner(self, w: Tensor) -> tuple[str, Tensor, bool] | None:
        """The parameter that a tensor is a view of: its name, it (or what is computed from it), and whether it is."""
        for name, whole, computed in self.owners.get(memory(w), ()):
            if 0 <= w.storage_offset() - whole.storage_offset() < max(1, whole.numel()):
                return name, whole, computed
        return None

    def _adopt(self, out: Any, given: list) -> None:
        """What is computed from one parameter, number by number (standardised weights, say), stands for it."""
        out = out[0] if isinstance(out, tuple) else out
        large = [arg for arg in tensors_in(given) if arg.dim() > 1 and arg.numel() == out.numel()]
        owner = self._owner(large[0]) if large else None
        if owner is None or self._owner(out) is not None:
            return
        if large[0].is_contiguous() and out.is_contiguous() and large[0].numel() == owner[1].numel():
            self.owners.setdefault(memory(out), []).append((owner[0], out, True))

    def _resolved(self, args: list) -> list:
        return [self._resolved(arg) if isinstance(arg, list) else self._value(arg) for arg in args]

    def _value(self, arg: Any) -> Any:
        if not isinstance(arg, Tag):
            return arg
        return self.values[arg] if arg in self.values else self._all_white(arg.shape)

    def _all_white(self, shape: tuple[int, ...]) -> Wave:
        """An input of the model, or of what comes behind an operator that nothing is known of."""
        return Wave(torch.full((1,) * len(shape), self.white), shape)

    def _product(self, place: int, op: Op, args: list, kwargs: dict) -> Any:
        operands = operators.operands(op.func, args)
        if op.is_a(operators.EMBEDDING) and isinstance(*operands, Tensor):
            return products.embedding(self, place, op, *operands)
        waves = [isinstance(operand, Wave) for operand in operands]
        if all(waves) and op.is_a(operators.ATTENTION):
            return products.attention(self, op, *operands)
        if all(waves) and op.is_a(operators.MATMUL):
            return products.matmul(op, *operands)
        if sum(isinstance(operand, Tensor) for operand in operands) == 1 and len(operands) == 2:
            # what the trace does not follow feeds a weight
            operands = [self._all_white(tuple(o.shape)) if isinstance(o, Untracked) else o for o in operands]
            waves = [isinstance(operand, Wave) for operand in operands]
        if not any(waves):
            known = not any(isinstance(arg, Untracked) for arg in operators.flat([*args, *kwargs.values()]))
            return op.func(*args, **kwargs) if known else Untracked(torch.Size(shapes_of(op)[0]))
        weight = operands[waves.index(False)] if not all(waves) else None
        if isinstance(weight, Tensor) and op.is_a(operators.CONVOLUTION) and waves[0]:
            return products.convolution(self, place, op, *operands)
        if isinstance(weight, Tensor) and op.is_a(operators.MATMUL):
            return products.matrix(self, place, op, operands[waves.index(True)], weight, first=waves[1])
        return self._end(op, args, kwargs)

    def _carry(self, place: int, op: Op, args: list, kwargs: dict) -> Any:
        if op.is_a(operators.WITHOUT_SIGNAL):
            return [Untracked(torch.Size(shape)) for shape in shapes_of(op)]
        handler = squares.find(op)
        if handler is None:
            return self._end(op, args, kwargs)
        first, *_ = args
        if handler is squares.softmax:
            self.read(first)
        if handler is squares.batch_norm and self.norms == "off":
            return first
        out = handler(op, *args, **kwargs)
        if handler is squares.spatial and not self.white:  # how pooled places overlap is not followed
            out = Wave(out.value * 0, out.shape)
        if place in self.activity:
            out = Wave(out.value * self.activity[place], out.shape)
        return out

    def _end(self, op: Op, args: list, kwargs: dict) -> list[Wave]:
        """An operator that nothing is known of: all of its inputs matter, alike, and its outputs are white."""
        self.opaque.append(str(op))
        for arg in operators.flat([*args, *kwargs.values()]):
            self.read(arg)
        return [self._all_white(shape) for shape in shapes_of(op)]

    def _trailing_norms(self) -> Places:
        """By the place of a product, the squared factors of the batch norm right behind it."""
        made = {
            tag: place for place, op in enumerate(self.graph.ops) for tag in op.results if tag is not None
        }
        found = {}
        for op in self.graph.ops:
            if op.is_a(operators.BATCH_NORM) and any(op.results):
                normed, *rest = op.inputs[0]
                scale = squares.norm_scale(op, (normed, *self._resolved(rest))) if normed in made else None
                if scale is not None:
                    found[made[normed]] = scale
        return found


def memory(tensor: Tensor) -> int:
    """Equal for a parameter and its views."""
    return tensor.untyped_storage().data_ptr()


def warn_opaque(flow: Flow) -> None:
    """Say which operators ended the waves, if any did."""
    if flow.opaque:
        named = ", ".join(dict.fromkeys(flow.opaque))
        warnings.warn(
            f"lookahead does not see through {named}; weights beside are scored by one side.", stacklevel=4
        )


def multiplying(graph: Graph) -> list[str]:
    """The parameters of two dimensions or more that a product takes together with an activation, in their order."""
    origin = {tag: name for tag, name in graph.tensors.items() if name in graph.parameters}
    constant, found = set(graph.tensors), set()
    for op in graph.ops:
        given = op.reads()
        weights = [origin[tag] for tag in given if tag in origin and len(tag.dims) > 1]
        if op.is_a(operators.WEIGHTED):
            found.update(weights if any(tag not in constant for tag in given) else ())
        elif op.is_a(operators.MOVE) and given and given[0] in origin:
            origin |= dict.fromkeys(op.writes(), origin[given[0]])
        elif weights and all(tag in constant for tag in given) and op.results[0] is not None:
            whole = math.prod(graph.shapes[weights[0]])
            if math.prod(shapes_of(op)[0]) == whole:  # see Flow._adopt
                origin[op.results[0]] = weights[0]
        if given and all(tag in constant for tag in given) and not op.is_a(operators.EMBEDDING):
            constant.update(op.writes())
    return [name for name in graph.layouts if name in found and len(graph.shapes[name]) > 1]


def view_like(site: Site, other: Tensor) -> Tensor:
    """The part that the site's weight is of its parameter, of another tensor that lies in memory as that does."""
    offset = site.weight.storage_offset() - site.whole.storage_offset() + other.storage_offset()
    return other.as_strided(site.weight.shape, site.weight.stride(), offset)


def masked_view(site: Site, mask: Tensor | None) -> Tensor:
    """What a mask leaves of the site's weight."""
    if mask is None:
        return site.weight
    return view_like(site, torch.empty_like(site.whole).copy_(site.whole * mask.view_as(site.whole)))
