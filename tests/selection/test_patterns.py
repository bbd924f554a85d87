"""What names stand for: kinds, axes, and layers that share what they write; what may shrink, and what stays whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import BudgetError, UserError
from prunus.methods import find
from prunus.search import Space
from prunus.selection import min_units
from prunus.zoo import build
from tests.lib.models import imported_beside_torchvision


class Block(nn.Module):
    """Two heads of 4 features on a residual stream of 16, and an MLP; pairs of features turn."""

    inverse: torch.Tensor

    def __init__(self, rotary: bool):
        super().__init__()
        self.rotary, self.size = rotary, 4
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.q, self.k, self.v = (nn.Linear(16, 8) for _ in range(3))
        self.out, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.register_buffer("inverse", torch.tensor([1.0, 0.1]))

    def turned(self, x):
        angles = torch.arange(x.shape[2])[:, None] * self.inverse
        cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        q, k, v = (
            part(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
PLAIN, ROTARY = (prunus.trace(Block(rotary).eval(), X) for rotary in (False, True))
AXES = {"width": "stem", "heads": "q#0", "head_dim": "q#1", "mlp": "up"}


def whole(graph, **options):
    bounds = min_units(graph, **options).items()
    return {name: why for name, (units, why) in bounds if units == graph.axes[name].size}


def test_the_kinds_of_the_block_are_those_that_the_tests_name():
    assert {kind: axis for axis, kind in PLAIN.kinds.items()} == AXES


@pytest.mark.parametrize("kind", ["width", "heads", "mlp"])
def test_a_kind_stands_for_its_axes(kind):
    axis = AXES[kind]
    assert whole(PLAIN, freeze=[kind]) == {axis: f"frozen by {kind!r}"}
    assert PLAIN.axes.keys() - whole(PLAIN, only=[kind]) == {axis}
    assert min_units(PLAIN, floor={kind: 1})[axis] == (1, "one unit")
    assert whole(PLAIN, cap={kind: 0}) == {axis: "cap"}


def test_only_and_freeze_go_together():
    assert PLAIN.axes.keys() - whole(PLAIN, only=["mlp", "heads"], freeze=["q#0"]) == {"up"}
    with pytest.raises(
        UserError, match=r"only=\['mlp'\] with freeze=\['up'\] leaves no axis that may shrink"
    ):
        whole(PLAIN, only=["mlp"], freeze=["up"])


def test_a_kind_that_is_not_there_names_those_that_are():
    with pytest.raises(
        UserError, match=r"only='channels': .* it has 1 of width, 1 of heads, \d of head_dim, 1 of mlp"
    ):
        whole(PLAIN, only=["channels"])
    with pytest.raises(UserError, match="Nearest: heads"):
        whole(PLAIN, freeze=["haeds"])


def test_a_layer_stands_for_what_it_alone_writes():
    assert set(whole(PLAIN, freeze=["up"])) == set(whole(PLAIN, freeze=["u?"])) == {"up"}
    assert set(whole(PLAIN, freeze=["down:in"])) == {"up"}
    assert set(whole(PLAIN, freeze=["[duos]*"])) == {"stem", "up"}  # all that write the stream
    with pytest.raises(
        UserError, match=r"'down' names no units of its own: the 16 units of axis stem \(width\) are"
    ):
        whole(PLAIN, freeze=["down"])
    with pytest.raises(
        UserError, match=r"written by stem.weight, out.weight, too. Write 'stem' .* 'width' .* 'down:in'"
    ):
        whole(PLAIN, freeze=["down"])
    with pytest.raises(UserError, match="'norm' names no units of its own"):
        whole(PLAIN, freeze=["norm"])


def test_the_last_layer_of_a_residual_branch_does_not_freeze_the_stream_of_a_resnet():
    graph = prunus.trace(build("resnet20_projection").eval(), torch.zeros(1, 3, 32, 32))
    assert set(whole(graph, freeze=["layer2.?"])) == {f"layer2.{n}.conv1" for n in range(3)} | {
        "layer2.0.conv2"
    }
    assert set(whole(graph, freeze=["layer1.?"])) == {
        f"layer1.{n}.conv1" for n in range(3)
    }  # the stem writes it, too
    assert set(whole(graph, freeze=["conv1", "layer1.?"])) == {f"layer1.{n}.conv1" for n in range(3)} | {
        "conv1"
    }


def test_projections_do_not_freeze_the_hidden_width_of_gpt2():
    transformers = pytest.importorskip("transformers", reason="the models are transformers'")
    imported_beside_torchvision("transformers.models.gpt2.modeling_gpt2")
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    graph = prunus.trace(transformers.GPT2LMHeadModel(config).eval(), {"input_ids": torch.zeros(1, 4).long()})
    width = "transformer.wte"
    with pytest.raises(
        UserError, match=r"'\*c_proj' names no units of its own: the 16 units of axis transformer.wte"
    ):
        whole(graph, freeze=["*c_proj"])
    assert set(whole(graph, freeze=["*c_proj:in"])) == graph.axes.keys() - {width}
    assert set(whole(graph, freeze=["width"])) == {width}
    first = {name for name in graph.axes if ".h.0." in name}
    assert len(first) == 3 and set(whole(graph, freeze=["transformer.h.0"])) == first


# ------------------------------------------------------------------------------------------- rotary
def test_units_that_turn_stay_unless_they_are_asked_for():
    (axis,) = ROTARY.rotary
    assert whole(ROTARY) == {axis: min_units(ROTARY)[axis][1]} and "rotary" in whole(ROTARY)[axis]
    assert whole(ROTARY, only=["*"]) == {} and axis not in whole(ROTARY, only=["head_dim"])
    assert ROTARY.axes.keys() - whole(ROTARY, only=["heads"]) == {"q#0"}


def test_asked_for_they_go_in_pairs_and_the_cut_is_proved():
    model = Block(rotary=True).eval()
    scores = prunus.scores.magnitude(model, ROTARY)
    keep = prunus.select(ROTARY, scores, prunus.Budget(macs=0.9), only=["head_dim"], round_to=1)
    small = prunus.shrink(model, ROTARY, keep)
    assert (small.q.weight.shape[0], small.inverse.shape[0]) == (4, 1)
    (kept,) = keep[next(iter(ROTARY.rotary))]
    rows = [head * 4 + place for head in range(2) for place in (kept, kept + 2)]
    torch.testing.assert_close(small.q.weight, model.q.weight[rows])


def test_the_reason_is_named_where_a_budget_cannot_be_met():
    scores = prunus.scores.random(ROTARY, 0)
    with pytest.raises(BudgetError, match="coupled by rotary position embeddings"):
        prunus.select(ROTARY, scores, prunus.Budget(macs=0.01), floor=0)


# ----------------------------------------------------------------------------- everything that selects
def test_axes_that_stay_whole_need_no_scores():
    keep = prunus.select(PLAIN, {"up": torch.rand(24)}, prunus.Budget(macs=0.9), only=["mlp"])
    assert len(keep["up"]) < 24 and all(
        len(keep[name]) == PLAIN.axes[name].size for name in keep if name != "up"
    )


def test_spaces_of_searches_keep_to_it():
    assert Space(PLAIN, only=["mlp"]).names == ["up"]
    assert not ROTARY.rotary & set(Space(ROTARY).names)


@pytest.mark.parametrize(
    "name", ["magnitude", "taylor", "dhp", "pass", "metapruning", "submodular", "random"]
)
def test_every_method_that_removes_units_has_the_option(name):
    method = find(name)
    rules = method.config_class(only=("mlp",)).rules(PLAIN)
    bounds = {name: rules[name] for name in ("floor", "cap", "freeze", "only")}
    assert PLAIN.axes.keys() - whole(PLAIN, **bounds) == {"up"}
