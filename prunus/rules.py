"""One small rule per ATen operator: how the layouts of its inputs give the layout of its output.

A rule takes the operation `op` (see `Op`) and the operator's own arguments, unifies what must be the
same, and returns one layout per output dimension (a tuple of such lists for several outputs). On the
way it may say
    op.count(n, *layouts, over)  n times the product of these layouts is its multiply-accumulates, summed over `over`
    op.follow(layout, i, k)      its integer argument i (element k of it) must follow this layout
    op.mixes = True              its result at one unit depends on the others (norms, reductions)
    op.contracts = True          it sums products over its operands' units (`count` says so too)
    op.role(tensor, dim, role)   how a parameter dimension is used
An operator without a rule fixes every axis it touches, under its own name. Never guess.

Letters: N batch, C channels, G groups, K contracted, T tokens, D head features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch

from prunus import axes
from prunus.axes import Axis, Layout

PRODUCES, CONSUMES, SCALES, SHIFTS = "produces", "consumes", "scales", "shifts"


class Tag:
    """What tracing knows about a tensor: a layout per dimension, and the allocation it lives in."""

    __slots__ = ("_shape", "dims", "met", "storage")

    def __init__(self, dims: Sequence[Layout], storage: Any = None):
        self.dims = list(dims)
        self.met = False  # whether an operator read it
        self.storage = storage  # see tracer.Storage; None for parameters and buffers
        self._shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; computed once, for those who go through a trace again and again."""
        if self._shape is None:
            self._shape = tuple(map(axes.size, self.dims))
        return self._shape


def tag_of(tensor: Any) -> Tag | None:
    """The tag of a tensor that tracing has seen; None for constants, and for what is no tensor."""
    return getattr(tensor, "_prunus_tag", None)


class Untracked(NamedTuple):
    """Stands for a tensor that depends on no parameter and no input."""

    shape: torch.Size


class Op:
    """One operation of the traced forward pass."""

    __slots__ = (
        "alias",
        "contracts",
        "follows",
        "func",
        "inputs",
        "macs",
        "mixes",
        "module",
        "name",
        "out",
        "outs",
        "over",
        "results",
        "roles",
        "scalars",
    )

    def __init__(self, func: torch._ops.OpOverload, module: str, out: Any):
        self.func = func
        self.name = func._schema.name.removeprefix("aten::")
        self.module = module
        self.out = out
        self.outs: list[list[Layout] | None] = []  # per output tensor, what the rule returned
        self.macs: list[tuple[int, tuple[Layout, ...]]] = []
        self.follows: list[tuple[Layout, int, int | None]] = []
        self.roles: list[tuple[Layout, str]] = []  # the axis a parameter dimension was born with, its role
        self.scalars: tuple[str, ...] = ()
        self.inputs: tuple[list, dict] = (
            [],
            {},
        )  # its arguments, tensors by their tags, `Untracked` without one
        self.results: list[Tag | None] = []  # the tags of its output tensors
        self.mixes = self.contracts = False
        self.over: Layout = 1  # what a product sums over
        self.alias: torch.Tensor | None = None  # the input whose memory the output shares

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the model itself'}"

    def dims(self, tensor: torch.Tensor) -> list[Layout]:
        tag = tag_of(tensor)
        return tag.dims if tag is not None else list(tensor.shape)

    def unify(self, a: Layout, b: Layout) -> None:
        axes.unify(a, b, self)

    def fix(self, *layouts: Layout) -> None:
        for layout in layouts:
            axes.fix(layout, self)

    def count(self, times: int, *layouts: Layout, over: Layout) -> None:
        self.contracts, self.over = True, over
        self.macs.append((times, layouts))

    def follow(self, layout: Layout, argument: int, element: int | None = None) -> None:
        if not isinstance(layout, int):
            self.follows.append((layout, argument, element))

    def role(self, tensor: torch.Tensor, dim: int, role: str) -> None:
        self.roles.append((self.dims(tensor)[dim], role))


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the operators named."""

    def register(function: Rule) -> Rule:
        for name in names.split():
            RULES[name] = function
        return function

    return register


def names_of(function: Rule) -> set[str]:
    """The operators that a rule is registered for."""
    return {name for name, rule in RULES.items() if rule is function}


@cache
def find(func: torch._ops.OpOverload) -> tuple[str, Rule]:
    """An operator's name and its rule, in-place forms included; `unknown` where there is none."""
    name = func._schema.name.removeprefix("aten::")
    found = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if found is None and torch.Tag.pointwise in func.tags:
        found = pointwise
    return name, found or unknown


def scalars(func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> tuple[str, ...]:
    """The numbers an operator computes with, as text, so that one that is not a number equals itself.

    Integers count where the operator is elementwise: no sizes there. A real tensor of one number is a number.
    """
    kinds = (int, float) if find(func)[1] is pointwise else (float,)
    args = tuple(
        t.item() if isinstance(t, torch.Tensor) and t.dim() == 0 and not t.is_meta else t for t in args
    )
    return tuple(
        repr(v) for v in [*args, *kwargs.values()] if isinstance(v, kinds) and not isinstance(v, bool)
    )


def tensors_in(args: Any) -> list[torch.Tensor]:
    """All tensors among arguments, one level of lists deep."""
    found = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found += [item for item in arg if isinstance(item, torch.Tensor)]
    return found


def unknown(op: Op, *args: Any, **kwargs: Any) -> None:
    """What happens to an operator without a rule."""
    for tensor in tensors_in([*args, *kwargs.values()]):
        op.fix(*op.dims(tensor))


# ------------------------------------------------------------------------------- elementwise
_SHIFT_OPS = {"add", "sub", "add_", "sub_", "rsub"}


@rule(
    "hardswish hardsigmoid where masked_fill native_dropout _prelu_kernel copy clamp_min clamp_max fill bernoulli"
)
def pointwise(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Aligned dimensions are the same; a broadcast dimension of size 1 carries nothing."""
    out = op.out[0] if isinstance(op.out, tuple) else op.out
    result: list[Layout] = [1] * out.dim()
    role = SHIFTS if op.name in _SHIFT_OPS else SCALES
    for tensor in tensors_in([*args, *kwargs.values()]):
        offset = out.dim() - tensor.dim()
        for i, layout in enumerate(op.dims(tensor)):
            if tensor.shape[i] == 1:
                continue
            if result[offset + i] == 1:
                result[offset + i] = layout
            else:
                op.unify(result[offset + i], layout)
            op.role(tensor, i, role)
    return (result, result) if isinstance(op.out, tuple) else result


@rule(
    "zeros_like ones_like empty_like rand_like randn_like full_like zero uniform normal random "
    "_to_copy clone contiguous"
)
def same(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> list[Layout]:
    return op.dims(x)


@rule("detach alias lift_fresh view_as_real")
def alias(op: Op, x: torch.Tensor, *args: Any) -> list[Layout]:
    op.alias = x
    return op.dims(x) + list(op.out.shape[x.dim() :])


# --------------------------------------------------------------------------------- products
@rule("convolution _convolution cudnn_convolution mkldnn_convolution convolution_overrideable")
def convolution(op: Op, x, w, b, stride, padding, dilation, transposed, output_padding, groups, *rest):
    """weight (C_out, C_in / G, *kernel), transposed (C_in, C_out / G, *kernel)."""
    x_dims, w_dims = op.dims(x), op.dims(w)
    op.fix(*x_dims[2:])
    for kernel in w_dims[2:]:
        axes.fix(kernel, "the kernel of a convolution")
    group: Layout = 1
    if groups > 1:
        group, _ = axes.factor(w_dims[0], w.shape[0] // groups, op)
        op.follow(group, 8)
    inner = axes.nest(group, w_dims[1])
    c_in, c_out = (w_dims[0], inner) if transposed else (inner, w_dims[0])
    op.unify(x_dims[1], c_in)
    op.role(w, 0, CONSUMES if transposed else PRODUCES)
    op.role(w, 1, PRODUCES if transposed else CONSUMES)
    if b is not None:
        op.unify(op.dims(b)[0], c_out)
        op.role(b, 0, SHIFTS)
    space = (x if transposed else op.out).shape[2:]
    op.count(prod(space) * prod(w.shape[2:]), x_dims[0], w_dims[0], w_dims[1], over=c_in)
    return [x_dims[0], c_out, *op.out.shape[2:]]


@rule("mm")
def mm(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    a_dims, b_dims = op.dims(a), op.dims(b)
    op.unify(a_dims[1], b_dims[0])
    op.role(b, 0, CONSUMES)
    op.role(b, 1, PRODUCES)
    op.role(a, 0, PRODUCES)
    op.role(a, 1, CONSUMES)
    op.count(1, a_dims[0], a_dims[1], b_dims[1], over=a_dims[1])
    return [a_dims[0], b_dims[1]]


@rule("addmm")
def addmm(op: Op, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> list[Layout]:
    out = mm(op, a, b)
    for i, layout in enumerate(reversed(op.dims(bias))):
        if bias.shape[-1 - i] != 1:
            op.unify(layout, out[-1 - i])
            op.role(bias, -1 - i, SHIFTS)
    return out


@rule("linear")
def linear(op: Op, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> list[Layout]:
    """x (..., K), w (C_out, K)"""
    x_dims, w_dims = op.dims(x), op.dims(w)
    op.unify(x_dims[-1], w_dims[1])
    op.role(w, 0, PRODUCES)
    op.role(w, 1, CONSUMES)
    if b is not None:
        op.unify(op.dims(b)[0], w_dims[0])
        op.role(b, 0, SHIFTS)
    op.count(1, *x_dims, w_dims[0], over=x_dims[-1])
    return [*x_dims[:-1], w_dims[0]]


@rule("bmm")
def bmm(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    a_dims, b_dims = op.dims(a), op.dims(b)
    op.unify(a_dims[0], b_dims[0])
    op.unify(a_dims[2], b_dims[1])
    op.count(1, *a_dims, b_dims[2], over=a_dims[2])
    return [a_dims[0], a_dims[1], b_dims[2]]


@rule("baddbmm")
def baddbmm(op: Op, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **kwargs: Any) -> list[Layout]:
    out = bmm(op, a, b)
    for i, layout in enumerate(reversed(op.dims(bias))):
        if bias.shape[-1 - i] != 1:
            op.unify(layout, out[-1 - i])
    return out


@rule("mv")
def mv(op: Op, a: torch.Tensor, b: torch.Tensor) -> list[Layout]:
    op.unify(op.dims(a)[1], op.dims(b)[0])
    op.contracts = True
    return [op.dims(a)[0]]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
)
def attention(op: Op, q, k, v, *args, scale: float | None = None, **kwargs):
    """q (N, G, T, D), k (N, G, S, D), v (N, G, S, E); grouped queries: each k and v head serves several of q's.

    The default scale, 1/sqrt(D), is tied to D.
    """
    q_dims, k_dims, v_dims = op.dims(q), op.dims(k), op.dims(v)
    for other in (k_dims, v_dims):
        op.unify(q_dims[0], other[0])
        heads, _ = axes.factor(q_dims[1], axes.size(q_dims[1]) // axes.size(other[1]), op)
        op.unify(heads, other[1])
    op.unify(q_dims[3], k_dims[3])
    op.unify(k_dims[2], v_dims[2])
    if scale is None:
        op.fix(q_dims[3])
    op.count(1, *q_dims, k_dims[2], over=q_dims[3])
    op.count(1, *q_dims[:3], k_dims[2], v_dims[3], over=k_dims[2])
    return ([*q_dims[:3], v_dims[3]],) + (None,) * (len(op.out) - 1)


# ------------------------------------------------------------------------------------ norms
@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "miopen_batch_norm _batch_norm_with_update _batch_norm_no_update batch_norm"
)
def batch_norm(op: Op, x: torch.Tensor, weight, bias, mean, variance, *args: Any) -> Any:
    dims = op.dims(x)
    for tensor, role in ((weight, SCALES), (bias, SHIFTS), (mean, SHIFTS), (variance, SCALES)):
        if tensor is not None:
            op.unify(dims[1], op.dims(tensor)[0])
            op.role(tensor, 0, role)
    if isinstance(op.out, torch.Tensor):
        return dims
    return (dims,) + (None,) * (len(op.out) - 1)


@rule("native_layer_norm")
def layer_norm(op: Op, x: torch.Tensor, shape: list[int], weight, bias, eps: float) -> Any:
    """Takes its statistics over the last dimensions, so it mixes their units."""
    dims = op.dims(x)
    first = len(dims) - len(shape)
    for i, layout in enumerate(dims[first:]):
        op.follow(layout, 1, i)
        for tensor, role in ((weight, SCALES), (bias, SHIFTS)):
            if tensor is not None:
                op.unify(layout, op.dims(tensor)[i])
                op.role(tensor, i, role)
        op.mixes |= any(axes.leaves(layout))
    return dims, None, None


@rule("_fused_rms_norm")
def rms_norm(op: Op, x: torch.Tensor, shape: list[int], weight, eps) -> Any:
    return layer_norm(op, x, shape, weight, None, eps)[0], None


@rule("native_group_norm")
def group_norm(op: Op, x: torch.Tensor, weight, bias, batch, channels, space, groups, eps) -> Any:
    """x (N, C, *) with C = G x rest; the statistics are taken over rest, so it mixes the units of rest."""
    dims = op.dims(x)
    group, _ = axes.factor(dims[1], channels // groups, op)
    for tensor, role in ((weight, SCALES), (bias, SHIFTS)):
        if tensor is not None:
            op.unify(dims[1], op.dims(tensor)[0])
            op.role(tensor, 0, role)
    op.follow(dims[1], 4)
    op.follow(group, 6)
    op.mixes = any(axes.leaves(dims[1]))
    return dims, None, None


@rule("_softmax _log_softmax _safe_softmax softmax log_softmax")
def along_dim(op: Op, x: torch.Tensor, dim: int, *args: Any, **kwargs: Any) -> list[Layout]:
    op.mixes = any(axes.leaves(op.dims(x)[dim]))
    return op.dims(x)


@rule("cumsum cumprod")
def cumulative(op: Op, x: torch.Tensor, dim: int, *args: Any, **kwargs: Any) -> list[Layout]:
    """Each unit's result depends on its place, so what it runs along stays."""
    op.fix(op.dims(x)[dim])
    return op.dims(x)


# ------------------------------------------------------------------------------- reductions
def _reduce(op: Op, x: torch.Tensor, over: Any, keepdim: bool) -> list[Layout]:
    over = [over] if isinstance(over, int) else over
    over = {d % x.dim() for d in over} if over else set(range(x.dim()))
    dims = op.dims(x)
    op.mixes = any(True for d in over for _ in axes.leaves(dims[d]))
    kept = [1 if d in over else layout for d, layout in enumerate(dims)]
    return kept if keepdim else [layout for d, layout in enumerate(kept) if d not in over]


@rule(
    "mean sum amax amin var std var_mean std_mean logsumexp prod any all argmax argmin max min count_nonzero"
)
def reduction(op: Op, x: torch.Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if isinstance(dim, torch.Tensor):  # max(a, b)
        return pointwise(op, x, dim)
    if op.name.startswith("arg") or (isinstance(op.out, tuple) and op.name in ("max", "min")):
        op.fix(*op.dims(x))  # a place among units would be another number in the small model
    out = _reduce(op, x, dim, keepdim)
    return (out, out) if isinstance(op.out, tuple) else out


@rule("linalg_vector_norm norm")
def vector_norm(
    op: Op, x: torch.Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any
):
    return _reduce(op, x, dim, keepdim)


# -------------------------------------------------------------------------------- space
def _spatial(count: int) -> Rule:
    def carry(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        dims = op.dims(x)
        op.fix(*dims[-count:])
        out = op.out[0] if isinstance(op.out, tuple) else op.out
        result = [*dims[:-count], *out.shape[-count:]]
        return (result, result) if isinstance(op.out, tuple) else result

    return carry


for _count in (1, 2, 3):
    _names = (
        "max_pool{}d_with_indices max_pool{}d avg_pool{}d adaptive_avg_pool{}d _adaptive_avg_pool{}d "
        "adaptive_max_pool{}d reflection_pad{}d replication_pad{}d upsample_nearest{}d "
        "_upsample_nearest_exact{}d upsample_bilinear{}d "
        "upsample_bicubic{}d _upsample_bilinear{}d_aa _upsample_bicubic{}d_aa upsample_linear{}d upsample_trilinear{}d"
    )
    rule(_names.replace("{}", str(_count)))(_spatial(_count))


@rule("constant_pad_nd")
def constant_pad(op: Op, x: torch.Tensor, pad: list[int], value: float = 0) -> list[Layout]:
    """Padding a dimension that shrinks adds axes of its own (the zero-padded shortcuts of ResNet)."""
    dims = list(op.dims(x))
    for k in range(len(pad) // 2):
        d = x.dim() - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        if before == after == 0:
            continue
        if not any(axes.leaves(dims[d])) or before < 0 or after < 0:
            op.fix(dims[d])
            dims[d] = op.out.shape[d]
        else:
            front, back = Axis(before), Axis(after)
            op.follow(front, 1, 2 * k)
            op.follow(back, 1, 2 * k + 1)
            dims[d] = axes.Sum((front, dims[d], back))
    return dims


@rule("pixel_shuffle")
def pixel_shuffle(op: Op, x: torch.Tensor, upscale: int) -> list[Layout]:
    *batch, channels, _, _ = op.dims(x)
    outer, inner = axes.factor(channels, upscale * upscale, op)
    op.fix(inner)
    return [*batch, outer, *op.out.shape[-2:]]


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Op, x: torch.Tensor, downscale: int) -> list[Layout]:
    *batch, channels, _, _ = op.dims(x)
    return [*batch, axes.nest(channels, downscale * downscale), *op.out.shape[-2:]]


@rule("channel_shuffle native_channel_shuffle")
def channel_shuffle(op: Op, x: torch.Tensor, groups: int) -> list[Layout]:
    dims = list(op.dims(x))
    outer, inner = axes.factor(dims[1], x.shape[1] // groups, op)
    op.follow(outer, 1)
    dims[1] = axes.nest(inner, outer)
    return dims


@rule("im2col")
def im2col(op: Op, x: torch.Tensor, kernel: list[int], *args: Any) -> list[Layout]:
    dims = op.dims(x)
    op.fix(*dims[-2:])
    return [*dims[:-3], axes.nest(dims[-3], prod(kernel)), op.out.shape[-1]]


# ------------------------------------------------------------------------------ reshaping
@rule("view _unsafe_view reshape _reshape_alias")
def view(op: Op, x: torch.Tensor, shape: list[int], *args: Any) -> list[Layout]:
    op.alias = x
    dims = axes.reshape(op.dims(x), op.out.shape, op)
    for i, layout in enumerate(dims):
        op.follow(layout, 1, i)
    return dims


@rule("permute")
def permute(op: Op, x: torch.Tensor, order: list[int]) -> list[Layout]:
    op.alias = x
    dims = op.dims(x)
    return [dims[d] for d in order]


@rule("transpose")
def transpose(op: Op, x: torch.Tensor, a: int, b: int) -> list[Layout]:
    order = list(range(x.dim()))
    if order:
        order[a], order[b] = order[b], order[a]
    return permute(op, x, order)


@rule("t")
def t(op: Op, x: torch.Tensor) -> list[Layout]:
    return permute(op, x, list(range(x.dim()))[::-1])


@rule("unsqueeze")
def unsqueeze(op: Op, x: torch.Tensor, dim: int) -> list[Layout]:
    op.alias = x
    dims = list(op.dims(x))
    dims.insert(dim % (x.dim() + 1), 1)
    return dims


@rule("squeeze")
def squeeze(op: Op, x: torch.Tensor, over: Any = None) -> list[Layout]:
    op.alias = x
    over = range(x.dim()) if over is None else [over] if isinstance(over, int) else over
    gone = {d % x.dim() for d in over if x.shape[d] == 1} if x.dim() else set()
    return [layout for d, layout in enumerate(op.dims(x)) if d not in gone]


@rule("expand")
def expand(op: Op, x: torch.Tensor, shape: list[int], **kwargs: Any) -> list[Layout]:
    """A dimension repeated from size 1 is equal everywhere: an axis of its own, if its size follows."""
    op.alias = x
    new = op.out.dim() - x.dim()
    dims: list[Layout] = [Axis(n) for n in op.out.shape]
    for i, layout in enumerate(op.dims(x)):
        if x.shape[i] != 1:
            dims[new + i] = layout
    for i, layout in enumerate(dims):
        op.follow(layout, 1, i)
    return dims


@rule("repeat")
def repeat(op: Op, x: torch.Tensor, times: list[int]) -> list[Layout]:
    new = len(times) - x.dim()
    dims = [1] * new + op.dims(x)
    return [axes.nest(n, layout) for n, layout in zip(times, dims, strict=True)]


@rule("roll flip")
def moved(op: Op, x: torch.Tensor, *args: Any) -> list[Layout]:
    """Moves units to other places of the same dimension: not expressible, so those stay."""
    over = args[-1] if args[-1] else range(x.dim())
    op.fix(*(op.dims(x)[d] for d in over))
    return op.dims(x)


@rule("tril triu")
def triangle(op: Op, x: torch.Tensor, *args: Any) -> list[Layout]:
    op.fix(*op.dims(x)[-2:])
    return op.dims(x)


# ---------------------------------------------------------------------- joining and taking parts
@rule("as_strided")
def restride(op: Op, x: torch.Tensor, shape: list[int], *args: Any) -> list[Layout]:
    """The same shape in another memory order is the same tensor; anything else is not followed."""
    if list(op.out.shape) != list(x.shape):
        op.fix(*op.dims(x))
        return list(op.out.shape)
    op.alias = x
    return op.dims(x)


@rule("cat")
def cat(op: Op, tensors: list[torch.Tensor], dim: int = 0) -> list[Layout]:
    tensors = [t for t in tensors if t.dim() == op.out.dim()]
    dim %= op.out.dim()
    result = list(op.dims(tensors[0]))
    for tensor in tensors[1:]:
        for d, layout in enumerate(op.dims(tensor)):
            if d != dim:
                op.unify(result[d], layout)
    result[dim] = axes.Sum(tuple(op.dims(tensor)[dim] for tensor in tensors))
    return result


@rule("stack")
def stack(op: Op, tensors: list[torch.Tensor], dim: int = 0) -> list[Layout]:
    result = list(op.dims(tensors[0]))
    for tensor in tensors[1:]:
        for a, b in zip(result, op.dims(tensor), strict=True):
            op.unify(a, b)
    result.insert(dim % op.out.dim(), len(tensors))
    return result


def _parts(op: Op, x: torch.Tensor, dim: int, lengths: list[int]) -> list[list[Layout]]:
    dim %= x.dim()
    results, rest = [], op.dims(x)[dim]
    for length in lengths:
        part, rest = axes.split(rest, length, op)
        results.append([part if d == dim else layout for d, layout in enumerate(op.dims(x))])
    return results


@rule("split")
def split(op: Op, x: torch.Tensor, length: int, dim: int = 0) -> tuple:
    """One integer says the length of all parts but the last, so they shrink together."""
    op.alias = x
    parts = _parts(op, x, dim, [part.shape[dim] for part in op.out])
    for part in parts:
        if axes.size(part[dim]) == length:
            op.unify(parts[0][dim], part[dim])
        else:
            op.fix(part[dim])
    op.follow(parts[0][dim], 1)
    return tuple(parts)


@rule("split_with_sizes")
def split_with_sizes(op: Op, x: torch.Tensor, lengths: list[int], dim: int = 0) -> tuple:
    op.alias = x
    parts = _parts(op, x, dim, lengths)
    for i, part in enumerate(parts):
        op.follow(part[dim], 1, i)
    return tuple(parts)


@rule("unbind")
def unbind(op: Op, x: torch.Tensor, dim: int = 0) -> tuple:
    op.alias = x
    dims = list(op.dims(x))
    op.fix(dims.pop(dim))
    return (dims,) * len(op.out)


@rule("slice")
def slice_(
    op: Op, x: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
):
    op.alias = x
    dims = list(op.dims(x))
    length = x.shape[dim]
    begin = max(0, min(length, (start or 0) + (length if (start or 0) < 0 else 0)))
    if op.out.shape[dim] == length:
        return dims
    if not any(axes.leaves(dims[dim])):
        dims[dim] = op.out.shape[dim]
    elif step == 1:
        before, rest = axes.split(dims[dim], begin, op)
        part, after = axes.split(rest, op.out.shape[dim], op)
        op.follow(before, 2)
        if axes.size(after):
            op.follow(axes.total(before, part), 3)
        dims[dim] = part
    elif length % step == 0 and begin < step and op.out.shape[dim] == length // step:
        dims[dim], inner = axes.factor(dims[dim], step, op)
        op.fix(inner)
    else:
        op.fix(dims[dim])
        dims[dim] = op.out.shape[dim]
    return dims


@rule("select")
def select(op: Op, x: torch.Tensor, dim: int, index: int) -> list[Layout]:
    op.alias = x
    dims = list(op.dims(x))
    op.fix(dims.pop(dim))
    return dims


@rule("glu")
def glu(op: Op, x: torch.Tensor, dim: int = -1) -> list[Layout]:
    dims = list(op.dims(x))
    first, second = axes.split(dims[dim], x.shape[dim] // 2, op)
    op.unify(first, second)
    dims[dim] = first
    return dims


# --------------------------------------------------------------------------------- indexing
@rule("embedding")
def embedding(op: Op, weight: torch.Tensor, index: torch.Tensor, *args: Any, **kwargs: Any) -> list[Layout]:
    """weight (rows, C): the rows are addressed by data, so they stay."""
    rows, columns = op.dims(weight)
    op.fix(rows)
    op.role(weight, 1, PRODUCES)
    return [*op.dims(index), columns]


@rule("index")
def index(op: Op, x: torch.Tensor, indices: list[torch.Tensor | None]) -> list[Layout]:
    dims = op.dims(x)
    taken = [d for d, i in enumerate(indices) if i is not None]
    op.fix(*(dims[d] for d in taken))
    if any(indices[d].dtype == torch.bool for d in taken):
        op.fix(*dims)
        return list(op.out.shape)
    kept = [d for d in range(x.dim()) if d not in taken]
    adjacent = taken == list(range(taken[0], taken[-1] + 1))
    first = taken[0] if adjacent else 0
    middle = op.out.dim() - len(kept)
    result = [dims[d] for d in kept]
    result[first:first] = list(op.out.shape[first : first + middle])
    return result


@rule("index_select gather")
def index_select(op: Op, x: torch.Tensor, dim: int, where: torch.Tensor, **kwargs: Any) -> list[Layout]:
    dims = list(op.dims(x))
    op.fix(dims[dim])
    if op.name == "gather":
        op.fix(*dims)
        return list(op.out.shape)
    dims[dim] = op.out.shape[dim]
    return dims


@rule("topk sort")
def ordered(op: Op, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """Places depend on data, so nothing that is ordered or carried along shrinks."""
    op.fix(*op.dims(x))


@rule("new_zeros new_ones new_full zeros ones full")
def constant(op: Op, *args: Any, **kwargs: Any) -> list[Layout]:
    """Equal everywhere, so it may shrink with whatever it meets, if its size follows."""
    place = next(i for i, arg in enumerate(args) if isinstance(arg, (list, tuple)))
    dims: list[Layout] = [Axis(n) for n in op.out.shape]
    for i, layout in enumerate(dims):
        op.follow(layout, place, i)
    return dims


@rule("new_empty empty arange scalar_tensor")
def untracked(op: Op, *args: Any, **kwargs: Any) -> None:
    """Nothing is known to shrink in it."""
