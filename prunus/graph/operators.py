"""Operators in families of those that are alike, each named once, and their arguments by name.

Every operator is in one family at most; `|` joins families into larger ones. Rules say how layouts pass through the
operators of a family; other rooms attach what they do to families, never to names. So an operator is known
everywhere once it is in a family: add its name here, or register it with `@rule(name, like="linear")`.

A family holds the in-place forms of its operators too: `relu_` is where `relu` is. Operators of other libraries are
named with theirs: "mylib::scaled_linear". Elementwise operators that are not named here are known by torch's tag.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from prunus.errors import unknown

Args = tuple[Any, ...]  # the arguments of an operator by position, as torch's dispatch passes them
Kwargs = dict[str, Any]  # those by keyword

_REQUIRED = object()
_FAMILIES: dict[str, Family] = {}  # by the operator's name


class Family:
    """Operators that are alike, or families joined by `|`.

    Args:
        sentence: A phrase that says what they have in common.
        names: The names of the operators, without "aten::", separated by spaces.
        operands: The place of the multiplied tensors among the arguments; for products.
        parts: The families that are joined; only `|` passes them.
    """

    __slots__ = ("operands", "parts", "sentence")

    def __init__(
        self, sentence: str, names: str = "", operands: slice = slice(0), parts: Collection[Family] = ()
    ):
        self.sentence, self.operands = sentence, operands
        self.parts: frozenset[Family] = frozenset(parts) or frozenset((self,))
        for name in names.split():
            if _FAMILIES.setdefault(name, self) is not self:
                raise ValueError(f"{name} is in two families: {_FAMILIES[name].sentence}; {sentence}")

    def __or__(self, other: Family) -> Family:
        return Family(f"{self.sentence}; {other.sentence}", parts=self.parts | other.parts)

    def __contains__(self, family: Family | None) -> bool:
        return family in self.parts

    def __repr__(self) -> str:
        return f"Family({self.sentence!r})"

    @property
    def names(self) -> list[str]:
        """The operators in it, sorted; elementwise ones that only torch's tag tells are not among them."""
        return sorted(name for name, family in _FAMILIES.items() if family in self)


def _dimensions(names: str) -> str:
    """The names with {} replaced by 1, 2 and 3 spatial dimensions, as far as torch has such operators."""
    every = [name.replace("{}", str(count)) for name in names.split() for count in (1, 2, 3)]
    return " ".join(name for name in every if hasattr(torch.ops.aten, name))


# --------------------------------------------------------------------------------------- products
FIRST_TWO, LAST_TWO = slice(0, 2), slice(1, 3)

CONVOLUTION = Family(
    "convolutions, also transposed and grouped; arguments weight, stride, padding, dilation, transposed, groups",
    "convolution _convolution cudnn_convolution mkldnn_convolution convolution_overrideable",
    FIRST_TWO,
)
LINEAR = Family("x (..., K) times a weight (O, K), with a bias or without", "linear", FIRST_TWO)
MM = Family("a matrix (M, K) times a matrix (K, O)", "mm", FIRST_TWO)
ADDMM = Family("a matrix product added to what comes first", "addmm", LAST_TWO)
BMM = Family("products of as many matrices as a batch holds", "bmm", FIRST_TWO)
BADDBMM = Family("products of a batch's matrices added to what comes first", "baddbmm", LAST_TWO)
MV = Family("a matrix (M, K) times a vector (K,)", "mv", FIRST_TWO)
ATTENTION = Family(
    "scaled dot products of queries, keys and values, in one",
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    slice(0, 3),
)
EMBEDDING = Family("rows of a table, picked by data", "embedding", slice(0, 1))

# ------------------------------------------------------------------------------------ elementwise
LIMIT = Family(
    "activations that change nothing the second time, and map some numbers to exactly zero",
    "relu hardtanh clamp clamp_min",
)
HARD_SWISH = Family("a swish of straight pieces, which is exactly zero from -3 on", "hardswish")
BENT = Family("activations that map negative numbers to nearly zero", "gelu silu leaky_relu elu mish")
SQUASHER = Family("activations that only bound their input", "sigmoid tanh hardsigmoid")
ADDITION = Family("sums and differences", "add sub rsub")
MULTIPLICATION = Family("products, number by number", "mul")
DIVISION = Family("quotients, number by number", "div")
COMPARISON = Family(
    "questions about numbers", "gt lt ge le eq ne isnan isinf logical_not logical_and logical_or"
)
ROOT = Family("roots, which norms written by hand divide by", "sqrt rsqrt")
POINTWISE = Family(
    "all other operators that compute each number from those at its place",
    "where masked_fill native_dropout _prelu_kernel copy clamp_max fill bernoulli poisson binomial complex polar "
    "rrelu_with_noise",
)
GLU = Family("one half of a dimension, gated by the other", "glu")

# ------------------------------------------------------------------------------------- new tensors
COPY = Family(
    "the same tensor, in memory of its own or of another type",
    "_to_copy clone contiguous detach alias lift_fresh",
)
RESTRIDED = Family("the same memory, in another order", "as_strided")
FRESH = Family(
    "tensors shaped like another, without its numbers",
    "zeros_like ones_like empty_like rand_like randn_like randint_like full_like zero uniform random exponential "
    "cauchy geometric log_normal",
)
CONSTANT = Family(
    "tensors of a stated size, equal everywhere or not written yet; argument size",
    "new_zeros new_ones new_full new_empty zeros ones full empty",
)
DRAWN = Family("random numbers of a stated size; argument size", "randn rand randint normal")
UNTRACKED = Family("tensors in which nothing is known to shrink", "arange scalar_tensor")
DATA_DEPENDENT = Family(
    "numbers read off the data, or as many as the data says",
    "_local_scalar_dense item nonzero masked_select is_nonzero equal _unique2 unique_dim unique_consecutive",
)

# ---------------------------------------------------------------------------- norms and reductions
BATCH_NORM = Family(
    "norms with a scale for each channel; arguments weight, bias, running_mean, running_var, eps or epsilon",
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "miopen_batch_norm _batch_norm_with_update _batch_norm_no_update batch_norm",
)
LAYER_NORM = Family("norms over the last dimensions, minus their mean", "native_layer_norm")
RMS_NORM = Family("norms over the last dimensions, their mean left in", "_fused_rms_norm")
GROUP_NORM = Family(
    "norms over groups of channels; arguments C and group, their numbers", "native_group_norm"
)
SOFTMAX = Family(
    "shares along a dimension, or their logarithms", "_softmax _log_softmax _safe_softmax softmax log_softmax"
)
MEAN = Family("means over dimensions", "mean")
SUM = Family("sums over dimensions", "sum")
LARGEST = Family("largest numbers along dimensions", "amax max")
SPREAD = Family("variances and deviations", "var std var_mean std_mean")
LENGTH = Family("lengths of vectors", "linalg_vector_norm norm")

# ------------------------------------------------------------------------------------------- space
MAX_POOLING = Family(
    "the largest number in each window",
    _dimensions("max_pool{}d_with_indices max_pool{}d adaptive_max_pool{}d"),
)
AVERAGE_POOLING = Family(
    "the mean of each window; argument kernel_size, its sizes", _dimensions("avg_pool{}d")
)
ADAPTIVE_POOLING = Family(
    "the means of as many windows as are wanted", _dimensions("adaptive_avg_pool{}d _adaptive_avg_pool{}d")
)
RESIZING = Family(
    "the same image, larger or smaller",
    _dimensions(
        "upsample_nearest{}d _upsample_nearest_exact{}d upsample_bilinear{}d upsample_bicubic{}d "
        "_upsample_bilinear{}d_aa _upsample_bicubic{}d_aa upsample_linear{}d upsample_trilinear{}d"
    ),
)
MIRRORING = Family("an image continued at its border", _dimensions("reflection_pad{}d replication_pad{}d"))
PADDING = Family("a tensor with constants around it; argument pad, how many", "constant_pad_nd")

# ------------------------------------------------------------------------------------------ shapes
TRANSPOSE = Family("dimensions in another order (the rule says which: op.order)", "permute transpose t")
VIEW = Family("the same numbers in another shape", "view _unsafe_view reshape _reshape_alias")
EXPANSION = Family("dimensions of size 1 repeated; argument size", "expand")
WRAPPING = Family("dimensions of size 1 added or left out", "unsqueeze squeeze") | EXPANSION
PART = Family(
    "parts of a dimension", "slice select split split_with_sizes unsafe_split unsafe_split_with_sizes unbind"
)
REPEAT = Family("a tensor laid beside itself", "repeat")
SHUFFLE = Family(
    "numbers carried from one dimension to another, or within one",
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle roll flip im2col",
)
TRIANGLE = Family("one triangle of a matrix, zeros elsewhere", "tril triu")
CAT = Family("tensors joined along a dimension", "cat")
STACK = Family("tensors joined along a new dimension", "stack")
INDEXING = Family("numbers taken from places that are data themselves", "index index_select gather")

# ---------------------------------------------------------------------------------- larger families
DEAD_END = LIMIT | HARD_SWISH
RECTIFIER = DEAD_END | BENT
MATRIX = MM | ADDMM
BATCHED = BMM | BADDBMM
MATMUL = LINEAR | MATRIX | BATCHED | MV
WEIGHTED = CONVOLUTION | MATMUL
PRODUCT = WEIGHTED | ATTENTION | EMBEDDING
ELEMENTWISE = RECTIFIER | SQUASHER | ADDITION | MULTIPLICATION | DIVISION | COMPARISON | ROOT | POINTWISE
SHAPE_KEEPING = (
    RECTIFIER | SQUASHER | ADDITION | MULTIPLICATION | DIVISION | SOFTMAX
)  # that of what comes first
MOVE = COPY | TRANSPOSE | VIEW | WRAPPING | PART  # a weight is still itself: its numbers, or some of them
FILLING = CAT | PADDING  # an operand has no part in the units that it lacks
NORM = BATCH_NORM | LAYER_NORM | RMS_NORM | GROUP_NORM | LENGTH
POOLING = MAX_POOLING | AVERAGE_POOLING | ADAPTIVE_POOLING
SPATIAL = POOLING | RESIZING | MIRRORING
NEW = (
    CONSTANT | DRAWN | EXPANSION | REPEAT
)  # their results may shrink, even if nothing that they read is known to
WITHOUT_SIGNAL = (
    COMPARISON | ROOT | SPREAD | LENGTH | FRESH | CONSTANT | DRAWN | UNTRACKED
)  # taken as constant


# --------------------------------------------------------------------------------------- questions
def normal_name(name: str) -> str:
    """An operator's name as it is registered: `relu` for "aten::relu" and "aten.relu"; "mylib::it" for others."""
    library, _, rest = name.rpartition("::") if "::" in name else name.rpartition(".")
    return rest if library in ("", "aten") else f"{library}::{rest}"


def name_of(func: torch._ops.OpOverload) -> str:
    """The name of an operator that is run: `relu`, `relu_`, "mylib::it"."""
    return func._schema.name.removeprefix("aten::")


def look_up(table: Mapping[str, Any], name: str) -> Any:
    """The entry of a table for an operator, or for the one of which it is the in-place form, or None."""
    found = table.get(name)
    return table.get(name.removesuffix("_")) if found is None else found


@cache
def family_of(func: torch._ops.OpOverload) -> Family | None:
    """The family of an operator; None if it is in none."""
    found = look_up(_FAMILIES, name_of(func))
    return POINTWISE if found is None and torch.Tag.pointwise in func.tags else found


def is_a(func: torch._ops.OpOverload, family: Family) -> bool:
    """Whether an operator that is run belongs to a family."""
    return family_of(func) in family.parts


def adopt(name: str, like: str) -> None:
    """Put an operator into the family of another. Raises UserError if that is in none."""
    found = look_up(_FAMILIES, normal_name(like))
    if found is None:
        raise unknown("operator with a family", like, _FAMILIES)
    _FAMILIES[name] = found
    family_of.cache_clear()


def functional(func: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """The operator that writes to none of its arguments: relu for relu_."""
    if not func._schema.is_mutable:
        return func
    library, name = func._schema.name.split("::")
    packet = getattr(getattr(torch.ops, library), name.removesuffix("_"))
    return getattr(packet, func._overloadname)


# --------------------------------------------------------------------------------------- arguments
@cache
def parameters(func: torch._ops.OpOverload) -> dict[str, tuple[int | None, Any]]:
    """The place (None: keyword only) and default (`_REQUIRED`: none) of each argument, by its name."""
    found: dict[str, tuple[int | None, Any]] = {}
    for place, each in enumerate(func._schema.arguments):
        default = each.default_value if each.has_default_value() else _REQUIRED
        found[each.name] = None if each.kwarg_only else place, default
    return found


def position(func: torch._ops.OpOverload, name: str) -> int:
    """The place of an argument. Raises UserError if the operator takes none of this name by position."""
    place, _ = parameters(func).get(name, (None, None))
    if place is None:
        by_position = [each for each, (place, _) in parameters(func).items() if place is not None]
        raise unknown(f"argument by position of {name_of(func)}", name, by_position)
    return place


def argument(
    func: torch._ops.OpOverload,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    default: Any = _REQUIRED,
) -> Any:
    """The value of an argument by its name, or its default in the schema if it was left out.

    default: the value for operators without such an argument; if it is absent too, UserError is raised.
    """
    place, usual = parameters(func).get(name, (None, _REQUIRED))
    if place is not None and place < len(args):
        return args[place]
    if kwargs and name in kwargs:
        return kwargs[name]
    for value in (usual, default):
        if value is not _REQUIRED:
            return value
    raise unknown(f"argument of {name_of(func)}", name, parameters(func))


def operands(func: torch._ops.OpOverload, args: Sequence[Any]) -> Sequence[Any]:
    """The arguments that a product multiplies; none for other operators."""
    family = family_of(func)
    return args[family.operands] if family is not None else ()


def flat(values: Iterable[Any]) -> Iterator[Any]:
    """The single values among arguments, those in lists too; named tuples are single values."""
    for value in values:
        if type(value) in (list, tuple):
            yield from flat(value)
        else:
            yield value
