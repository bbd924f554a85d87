"""Families of operators, and arguments by name; an operator that is registered once is known in every room."""

import hashlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import gates, latency, scores, sparse, surgery
from prunus.errors import TraceError, UserError
from prunus.graph import operators, trace
from prunus.graph.operators import Family, argument, family_of, functional, normal_name, operands, position
from prunus.graph.rules import registry
from prunus.graph.rules.registry import RULES
from prunus.latency.profiling import measure_tables
from prunus.sparse import neighbours, reach, squares
from tests.lib.latency import Fake

ATEN = torch.ops.aten
FAMILIES = {name: value for name, value in vars(operators).items() if isinstance(value, Family)}


# --------------------------------------------------------------------------------------- families
@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_in_a_family_is_an_operator_of_torch(name):
    names = [each for each in FAMILIES[name].names if "::" not in each]
    assert names and not [each for each in names if not hasattr(ATEN, each)]


def test_all_rules_are_there():
    """If a file of rules is no longer imported, its operators would fix what they meet without a word."""
    names = sorted(name for name in RULES if "::" not in name)
    assert len(names) == 237
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()
    assert digest == "87c4080cad7b42c16a22c6ba26a78f52ce51e03912f241a2c02769fe2844b8bb"


def test_an_operator_is_in_one_family_and_its_in_place_form_too():
    with pytest.raises(ValueError, match="relu is in two families"):
        Family("another", "relu")
    assert family_of(ATEN.relu.default) is family_of(ATEN.relu_.default) is operators.LIMIT
    assert family_of(ATEN.exp.default) is operators.POINTWISE  # as torch's tag says
    assert family_of(ATEN.topk.default) is None and operators.DEAD_END not in operators.MOVE
    assert functional(ATEN.relu_.default) is ATEN.relu.default is functional(ATEN.relu.default)
    assert functional(ATEN.add_.Tensor) is ATEN.add.Tensor


@pytest.mark.parametrize("given", ["relu", "aten.relu", "aten::relu"])
def test_names_are_taken_with_and_without_torchs(given):
    assert normal_name(given) == "relu"
    assert normal_name(f"mylib::{given[-4:]}") == normal_name(f"mylib.{given[-4:]}") == "mylib::relu"


def test_what_rooms_do_they_do_to_families():
    assert all(isinstance(family, Family) for family in squares.HANDLERS)
    assert operators.SPATIAL.parts <= squares.HANDLERS.keys()


# -------------------------------------------------------------------------------------- arguments
CONVOLUTION = (None, None, None, [1, 2], [3, 4], [5, 6], False, [7, 8], 9)
PLACES = [
    (ATEN.convolution.default, CONVOLUTION, ("stride", "padding", "dilation", "transposed", "groups"), (3, 4, 5, 6, 8)),
    (ATEN.native_group_norm.default, tuple("xwbNCHge"), ("N", "C", "HxW", "group", "eps"), (3, 4, 5, 6, 7)),
    (ATEN.addmm.default, tuple("cab"), ("self", "mat1", "mat2"), (0, 1, 2)),
    (
        ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        tuple("qkv"),
        ("query", "key", "value"),
        (0, 1, 2),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("func", "args", "names", "places"), PLACES)
def test_arguments_by_name_are_those_at_their_places(func, args, names, places):
    for name, place in zip(names, places, strict=True):
        assert argument(func, name, args) == args[place] and position(func, name) == place


def test_arguments_left_out_have_their_default_and_unknown_ones_are_refused():
    attention = ATEN._scaled_dot_product_flash_attention_for_cpu.default
    assert argument(attention, "is_causal", ()) is False
    assert (
        argument(attention, "scale", (), {"scale": 0.5}) == 0.5 and argument(attention, "scale", ()) is None
    )
    assert argument(ATEN.addmm.default, "beta", ()) == 1
    assert argument(ATEN.linear.default, "groups", (), default=1) == 1
    with pytest.raises(UserError, match=r"unknown argument of linear 'wieght'.*Did you mean weight"):
        argument(ATEN.linear.default, "wieght", ())
    with pytest.raises(UserError, match="argument by position of addmm"):
        position(ATEN.addmm.default, "beta")


def test_a_traced_operation_knows_its_arguments_operands_and_tensors():
    conv = nn.Conv2d(6, 9, 3, groups=3)
    graph = trace(nn.Sequential(conv, nn.ReLU(inplace=True), nn.Conv2d(9, 2, 1)), torch.zeros(1, 6, 5, 5))
    first, relu, last = graph.ops
    assert first.argument("groups") == 3 and last.argument("groups") == 1
    assert [graph.tensors.get(tag) for tag in first.operands()] == [None, "0.weight"]
    assert [graph.tensors.get(tag) for tag in first.reads()] == [None, "0.weight", "0.bias"]
    assert first.tags() == first.reads() + first.writes() and first.writes() == relu.reads()
    assert relu.is_a(operators.RECTIFIER) and relu.is_a(operators.ELEMENTWISE)
    assert first.is_a(operators.WEIGHTED) and not first.is_a(operators.MATMUL)


def test_operands_of_products_leave_out_what_is_added():
    assert operands(ATEN.addmm.default, "cab") == "ab" and operands(ATEN.baddbmm.default, "cab") == "ab"
    assert operands(ATEN.linear.default, "xwb") == "xw" and operands(ATEN.mm.default, "ab") == "ab"
    assert operands(ATEN.embedding.default, "wi") == "w" and operands(ATEN.relu.default, "x") == ""


# ---------------------------------------------------------------- a weight that moves is still itself
class Cut(nn.Module):
    """A product of two halves of one weight, or a weight that is viewed in its own shape."""

    def __init__(self, halves):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.weight, self.last = nn.Linear(6, 8), nn.Parameter(torch.randn(10, 8)), nn.Linear(5, 3)
        self.halves = halves

    def forward(self, x):
        x = F.relu(self.up(x))
        if not self.halves:
            return F.linear(x, self.weight.view(self.weight.shape))
        first, second = self.weight.split(5)
        return self.last(F.linear(x, first) * F.linear(x, second))


def test_a_gate_on_a_weight_that_is_cut_up_is_exact():
    model, example = Cut(halves=True), torch.randn(4, 6)
    graph = trace(model, example)
    assert not gates.inexact_axes(graph)
    small = surgery.shrink(model, graph, {"up": [0, 3, 6]})
    made = gates.attach(model, graph, ["up"])
    made.of("up").data[[1, 2, 4, 5, 7]] = 0
    torch.testing.assert_close(model(example), small(example))


@pytest.mark.filterwarnings("ignore:2 parameters are never used")
def test_zeros_reach_through_a_view_of_a_weight_in_its_own_shape():
    graph = trace(Cut(halves=False), torch.randn(4, 6))
    unread = torch.ones(10, 8, dtype=torch.bool)
    unread[:, 2] = False
    alive = reach.alive(graph, {"weight": unread})["up"]
    assert [unit for unit in range(8) if not alive[unit]] == [2]


# ------------------------------------------------------- an operator of another library, declared once
@torch.library.custom_op("prunus_test::mixed_linear", mutates_args=())
def mixed_linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x times w in the higher precision, with a bias."""
    return F.linear(x.double(), w.double(), b.double()).to(x.dtype)


@torch.library.custom_op("prunus_test::scaled", mutates_args=())
def scaled(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """x times a number for each of its last dimension."""
    return x * by


for _op, _shape in (
    (mixed_linear, lambda x, w, b: x.new_empty(*x.shape[:-1], w.shape[0])),
    (scaled, lambda x, by: torch.empty_like(x)),
):
    _op.register_fake(_shape)
mixed_linear.register_autograd(
    lambda ctx, grad: (grad @ ctx.saved_tensors[1], grad.T @ ctx.saved_tensors[0], grad.sum(0)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2]),
)
scaled.register_autograd(
    lambda ctx, grad: (grad * ctx.saved_tensors[1], (grad * ctx.saved_tensors[0]).sum(0)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Ours(nn.Module):
    """Two layers and a scale, by operators of our own or by torch's."""

    def __init__(self, own: bool):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.scale = (
            nn.Linear(8, 12),
            nn.Linear(12, 4),
            nn.Parameter(torch.rand(12) + 0.5),
        )
        self.own = own

    def forward(self, x):
        if not self.own:
            return self.last(F.relu(self.first(x)) * self.scale)
        x = F.relu(mixed_linear(x, self.first.weight, self.first.bias))
        return mixed_linear(scaled(x, self.scale), self.last.weight, self.last.bias)


EXAMPLE = torch.randn(3, 8)


def test_without_a_rule_nothing_is_followed_through_it():
    assert not any(name.startswith("prunus_test") for name in RULES)
    with pytest.raises(TraceError, match="dimension 0: prunus_test::mixed_linear in the model itself"):
        trace(Ours(own=True), EXAMPLE)


def test_an_operator_without_a_rule_fixes_what_it_touches_and_no_more():
    graph = trace(
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), Ours(own=True), nn.Linear(4, 5), nn.Linear(5, 2)), EXAMPLE
    )
    assert list(graph.axes) == ["3"] and graph.ops[-1].reads()[1].shape == (3, 5)


@pytest.fixture
def declared(monkeypatch):
    """The one place in which the operators are made known."""
    monkeypatch.setattr(operators, "_FAMILIES", dict(operators._FAMILIES))
    before = dict(RULES)

    @prunus.rule("prunus_test::mixed_linear", like="aten.linear")
    def layouts_of_product(op, x, w, b):
        (*batch, inputs), (rows, columns) = op.dims(x), op.dims(w)
        op.unify(inputs, columns)
        op.unify(rows, op.dims(b)[0])
        op.role(b, 0, "shifts")
        op.count(1, *batch, inputs, rows, over=inputs)
        return [*batch, rows]

    @prunus.rule("prunus_test.scaled", like="mul")
    def layouts_of_scale(op, x, by):
        op.unify(op.dims(x)[-1], op.dims(by)[0])
        return op.dims(x)

    own, torchs = Ours(own=True), Ours(own=False)
    yield own, trace(own, EXAMPLE), torchs, trace(torchs, EXAMPLE)
    for name in RULES.keys() - before.keys():
        del RULES[name]
    monkeypatch.undo()
    registry.find.cache_clear()
    family_of.cache_clear()


def both(declared, measure):
    """What is measured of the network of our operators, and of torch's."""
    own, graph, torchs, other = declared
    return measure(own, graph), measure(torchs, other)


def same(pair):
    found, expected = pair
    assert found.keys() == expected.keys() and found
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_it_is_traced_and_counted(declared):
    found, expected = both(declared, lambda model, graph: (graph.widths(), prunus.macs(graph)))
    assert found == expected == ({"first": 12}, 3 * 12 * (8 + 4))


def test_it_is_scored(declared):
    data = [(torch.randn(5, 8), torch.randint(4, (5,))) for _ in range(2)]
    same(both(declared, scores.magnitude))
    same(both(declared, lambda model, graph: scores.taylor(model, graph, F.cross_entropy, data)))


def test_its_weights_are_scored_by_their_neighbours(declared, recwarn):
    same(both(declared, sparse.magnitude))
    same(both(declared, sparse.lookahead))
    same(both(declared, lambda model, graph: sparse.wanda(model, graph, [(EXAMPLE, None)])))
    assert not [each for each in recwarn if "lookahead does not see" in str(each.message)]
    assert neighbours.find_multipliers(declared[1]) == ["first.weight", "last.weight"]


def test_zeros_in_its_weights_reach_its_units(declared):
    masks = {
        "first.weight": torch.ones(12, 8, dtype=torch.bool),
        "last.weight": torch.ones(4, 12, dtype=torch.bool),
    }
    masks["first.weight"][3] = False
    masks["last.weight"][:, 5] = False
    same(both(declared, lambda model, graph: reach.alive(graph, masks)))
    alive = reach.alive(declared[1], masks)["first"]
    assert [i for i in range(12) if not alive[i]] == [3, 5]


def test_it_is_gated(declared):
    own, graph, *_ = declared
    assert both(declared, lambda model, graph: gates.inexact_axes(graph)) == ({}, {})
    made = gates.attach(own, graph, ["first"])
    made.of("first").data[:4] = 0
    with torch.no_grad():
        closed = own(EXAMPLE)
    small = surgery.shrink(Ours(own=True), graph, {"first": list(range(4, 12))})
    torch.testing.assert_close(small(EXAMPLE), closed)


def test_it_is_timed(declared, tmp_path):
    own, graph, *_ = declared
    found, expected = both(declared, lambda model, graph: latency.operators.operators(graph))
    assert [(each.full, each.kind) for each in found] == [(each.full, each.kind) for each in expected]
    assert [each.kind for each in found] == ["products", "others", "others", "products"]
    fake = Fake()
    measure_tables(own, graph, runtime=fake, cache=tmp_path)
    assert any("mixed_linear" in key for key in fake.timed) and any("scaled" in key for key in fake.timed)


def test_it_is_proved(declared):
    own, graph, torchs, other = declared
    keep = {"first": [0, 2, 5, 7]}
    found = prunus.shrink(own, graph, keep)  # raises PruningError where the proof fails
    expected = prunus.shrink(torchs, other, keep)
    assert found.first.weight.shape == (4, 8)
    torch.testing.assert_close(found(EXAMPLE), expected(EXAMPLE))
    with pytest.raises(UserError, match="unknown operator with a family 'topk'"):
        prunus.rule("prunus_test::other", like="topk")(partial)
