"""The norms of the layers before and after every weight, found by one pass of the squared network over a graph.

Removing one weight w from a product changes the output of the three layers around it, all else being linear
and the inputs white, by |w| * sqrt(before * behind): `before` is the squared norm of the weights that feed
its input, `behind` that of the weights that read its output (Park et al., Lookahead, ICLR 2020,
arXiv:2002.04809, equation 4). In a chain these are a row norm of the layer before and a column norm of the
layer after. On any graph one pass over its operators finds them: every product ends the waves that enter it
and starts one that holds its own row norms; a sum of waves is as if their inputs were stacked; and by the
chain rule `behind` is the derivative, with respect to a wave, of all that products read of it. Source: the
squared network is ours (specification, 5.2).

squares.py holds the rules of other operators for waves, products.py those of products.
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
Places = Mapping[int, Tensor]  # tensors by the place of an operator in graph.ops
Shaped = Callable[
    [Tensor], Tensor
]  # reshapes a number for each output of a weight to broadcast to the weight


@dataclass(eq=False)
class Site:
    """One product with one weight; `before` and `behind` broadcast to `weight`."""

    name: str  # the parameter
    place: int  # of the product in graph.ops
    weight: Tensor  # the part of the parameter that is used, as the operator sees it: a view of `whole`
    whole: Tensor  # the parameter, or what is computed from it alone, element by element
    before: Tensor
    behind: Tensor | None = None
    norms: Tensor | None = None  # squared norm of each output's weights
    stride: Lag = ()  # of a convolution
    transposed: bool = False
    computed: bool = False


@dataclass(eq=False)
class _Leaf:
    """A wave that starts at a product, with respect to which the derivative is taken."""

    value: Tensor
    positions: int  # elements that each number stands for
    site: Site | None
    shaped: Shaped


@dataclass(eq=False)
class _Sink:
    """A read of a wave: `weights`, shaped like its value, say how much of each element is read."""

    value: Tensor
    weights: Tensor
    site: Site | None = None
    again: Callable[[Tensor], Tensor] | None = None  # `weights` if the site held another weight


@dataclass(eq=False)
class Flow:
    """One pass: `run`, then `resolve`, then `sites` is complete.

    lag: the distance in space of the two elements whose product is followed; at lag 0 that is the square.
    activity: factors for the waves after an operator. fed: values for `before`, in place of those found, by
    product. opaque: operators of unknown families. squares: squared weights by parameter, without those that
    `decide` changed.
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
    scratch: Tensor | None = None  # memory for squares that are not kept

    def run(self, tensors: Mapping[str, Tensor], decide: Callable[[Site], Tensor] | None = None) -> None:
        """Follow the waves through all operators.

        tensors: the model's tensors by name, after parametrisations. decide: returns the weight to continue
        with at a site whose `before` is known (for passes that prune on the way).
        """
        self.decide = decide
        self.white = float(not any(self.lag))  # independent elements are correlated at lag 0 alone
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

    def resolve(self) -> None:
        """Find `behind` of every site."""
        self._resolve([leaf for leaf in self.leaves if leaf.site is not None])

    def resolve_again(self, site: Site, masked: Mapping[str, Tensor]) -> None:
        """Find `behind` of one site while other weights are masked."""
        for sink in self.sinks:
            if sink.site is not None and sink.site.name in masked:
                assert sink.again is not None, "a sink of a site has it"
                sink.weights = sink.again(masked_view(sink.site, masked[sink.site.name])).detach()
                sink.site = None  # a mask is applied once
        self._resolve([leaf for leaf in self.leaves if leaf.site is site])

    def _resolve(self, leaves: list[_Leaf]) -> None:
        """Take the derivative of all reads by each leaf's wave; 1 for a wave that is never read."""
        used = [sink for sink in self.sinks if sink.value.requires_grad]
        values, weights = [sink.value for sink in used], [sink.weights for sink in used]
        wanted = [leaf.value for leaf in leaves]
        found = torch.autograd.grad(values, wanted, weights, retain_graph=True, allow_unused=True)
        for leaf, each in zip(leaves, found, strict=True):
            behind = torch.full_like(leaf.value, self.white) if each is None else each / leaf.positions
            assert leaf.site is not None
            leaf.site.behind = leaf.shaped(behind.detach())

    # ---------------------------------------------------------------------------- for products.py
    def site(
        self, place: int, w: Tensor, before: Tensor, stride: Lag = (), transposed: bool = False
    ) -> tuple[Site | None, Tensor]:
        """Add the site of a weight, if it is a parameter's; also returns the weight to continue with."""
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
        """The memory for the squares of w, which are kept for the parameter of the site if there is one."""
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
        """Start a wave of the numbers `produced` over an activation of `shape`; returns its value."""
        value = produced.detach().requires_grad_()
        self.leaves.append(_Leaf(value, math.prod(shape) // max(1, value.numel()), site, shaped))
        if site is not None:
            site.norms = value.detach()
        return value

    def sink(self, x: Wave, read: Tensor, site: Site | None, again: Callable[[Tensor], Tensor]) -> None:
        """Add a product's read of x: `read` broadcasts to its shape; again(w) computes it for w."""

        def weights(read: Tensor) -> Tensor:
            return products.fit(read, x).detach()

        self.sinks.append(_Sink(x.value, weights(read), site, lambda w: weights(again(w))))

    def read(self, x: Any) -> None:
        """Add a read of all of x, each element with weight 1."""
        if isinstance(x, Wave):
            self.sinks.append(_Sink(x.value, torch.full_like(x.value, self.white * x.repeats)))

    # --------------------------------------------------------------------------------- one operator
    def _step(self, place: int, op: Op) -> None:
        args, names = self._values(op.inputs[0]), op.inputs[1]
        kwargs = dict(zip(names, self._values(list(names.values())), strict=True))
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
        """The name of the parameter of which a tensor is a view, the whole tensor, whether it is computed."""
        for name, whole, computed in self.owners.get(memory(w), ()):
            if 0 <= w.storage_offset() - whole.storage_offset() < max(1, whole.numel()):
                return name, whole, computed
        return None

    def _adopt(self, out: Any, given: list[Any]) -> None:
        """Let a tensor computed from one parameter by element (standardised weights) stand for it."""
        out = out[0] if isinstance(out, tuple) else out
        large = [arg for arg in tensors_in(given) if arg.dim() > 1 and arg.numel() == out.numel()]
        owner = self._owner(large[0]) if large else None
        if owner is None or self._owner(out) is not None:
            return
        if large[0].is_contiguous() and out.is_contiguous() and large[0].numel() == owner[1].numel():
            self.owners.setdefault(memory(out), []).append((owner[0], out, True))

    def _values(self, args: list[Any]) -> list[Any]:
        return [self._values(arg) if isinstance(arg, list) else self._value(arg) for arg in args]

    def _value(self, arg: Any) -> Any:
        if not isinstance(arg, Tag):
            return arg
        return self.values[arg] if arg in self.values else self._all_white(arg.shape)

    def _all_white(self, shape: tuple[int, ...]) -> Wave:
        """The wave of an input of the model, or of the result of an unknown operator."""
        return Wave(torch.full((1,) * len(shape), self.white), shape)

    def _product(self, place: int, op: Op, args: list[Any], kwargs: dict[str, Any]) -> Any:
        operands = operators.operands(op.func, args)
        if op.is_a(operators.EMBEDDING):
            (table,) = operands
            if isinstance(table, Tensor):
                return products.embedding(self, place, op, table)
        waves = [isinstance(operand, Wave) for operand in operands]
        if all(waves) and op.is_a(operators.ATTENTION):
            return products.attention(self, op, *operands)
        if all(waves) and op.is_a(operators.MATMUL):
            return products.matmul(op, *operands)
        if sum(isinstance(operand, Tensor) for operand in operands) == 1 and len(operands) == 2:
            # an operand that the trace does not follow feeds a weight
            operands = [self._all_white(tuple(o.shape)) if isinstance(o, Untracked) else o for o in operands]
            waves = [isinstance(operand, Wave) for operand in operands]
        if not any(waves):
            known = not any(isinstance(arg, Untracked) for arg in operators.flat([*args, *kwargs.values()]))
            return op.func(*args, **kwargs) if known else Untracked(torch.Size(shapes_of(op)[0]))
        weight = operands[waves.index(False)] if not all(waves) else None
        if isinstance(weight, Tensor) and op.is_a(operators.CONVOLUTION) and waves[0]:
            return products.convolution(self, place, op, operands[0], weight)
        if isinstance(weight, Tensor) and op.is_a(operators.MATMUL):
            return products.matrix(self, place, op, operands[waves.index(True)], weight, first=waves[1])
        return self._end(op, args, kwargs)

    def _carry(self, place: int, op: Op, args: list[Any], kwargs: dict[str, Any]) -> Any:
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
        if handler is squares.spatial and not self.white:  # the overlap of pooled windows is not followed
            out = Wave(out.value * 0, out.shape)
        if place in self.activity:
            out = Wave(out.value * self.activity[place], out.shape)
        return out

    def _end(self, op: Op, args: list[Any], kwargs: dict[str, Any]) -> list[Wave]:
        """End the waves at an unknown operator: it reads all inputs equally, its outputs are white."""
        self.opaque.append(str(op))
        for arg in operators.flat([*args, *kwargs.values()]):
            self.read(arg)
        return [self._all_white(shape) for shape in shapes_of(op)]

    def _trailing_norms(self) -> Places:
        """The squared factors of the batch norm right after a product, by the place of the product."""
        made = {
            tag: place for place, op in enumerate(self.graph.ops) for tag in op.results if tag is not None
        }
        found: dict[int, Tensor] = {}
        for op in self.graph.ops:
            if op.is_a(operators.BATCH_NORM) and any(op.results):
                normed, *rest = op.inputs[0]
                scale = squares.norm_scale(op, (normed, *self._values(rest))) if normed in made else None
                if scale is not None:
                    found[made[normed]] = scale
        return found


def memory(tensor: Tensor) -> int:
    """The address of a tensor's memory, which a parameter and its views share."""
    return tensor.untyped_storage().data_ptr()


def warn_opaque(flow: Flow) -> None:
    """Warn of the operators that ended the waves, if any did."""
    if flow.opaque:
        named = ", ".join(dict.fromkeys(flow.opaque))
        warnings.warn(
            f"lookahead does not see through {named}; weights next to them are scored from one side.",
            stacklevel=4,
        )


def find_multipliers(graph: Graph) -> list[str]:
    """The parameters of two dimensions or more that a product multiplies with an activation."""
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
    """The part of `other`, laid out like the parameter, that corresponds to the site's weight."""
    offset = site.weight.storage_offset() - site.whole.storage_offset() + other.storage_offset()
    return other.as_strided(site.weight.shape, site.weight.stride(), offset)


def masked_view(site: Site, mask: Tensor | None) -> Tensor:
    """The site's weight with zeros where the mask is False."""
    if mask is None:
        return site.weight
    return view_like(site, torch.empty_like(site.whole).copy_(site.whole * mask.view_as(site.whole)))
