"""Experts that a router picks: an axis, as long as nothing computes with their numbers."""

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import BudgetError, UserError
from prunus.gates import inexact_axes
from prunus.selection import min_units
from tests.lib.models import imported_beside_torchvision

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Experts(nn.Module):
    """Two of five experts for each example, their weights in one tensor."""

    def __init__(self, also=lambda numbers: 0.0):
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 3)
        self.up, self.down = nn.Parameter(torch.randn(5, 8, 12)), nn.Parameter(torch.randn(5, 12, 8))
        self.also = also

    def forward(self, x, closed=()):
        x = self.stem(x)
        scores = self.router(x)
        if closed:
            scores = scores.index_fill(1, torch.tensor(closed), -torch.inf)
        shares, numbers = scores.softmax(-1).topk(2, -1)
        flat = numbers.reshape(-1)
        hidden = x.repeat_interleave(2, 0)[:, None] @ self.up[flat]
        out = (hidden.relu() @ self.down[flat]).view(len(x), 2, -1)
        return self.head(x + (out * shares[..., None]).sum(1)) + self.also(numbers)


def made(**options):
    torch.manual_seed(0)
    model = Experts(**options).eval()
    return model, prunus.trace(model, X)


def test_experts_are_an_axis_with_the_rows_of_their_router():
    _, graph = made()
    assert graph.kinds == {
        "stem": "width",
        "up": "experts",
        "up'": "mlp",
    }  # of `up` the first and the last dimension
    members = {member.tensor for member in graph.members("up")}
    assert members == {"router.weight", "router.bias", "up", "down"}


@pytest.mark.parametrize("kept", [[0, 1, 3, 4], [1, 4], [0, 2, 3]])
def test_a_removed_expert_is_one_that_is_never_picked(kept):
    model, graph = made()
    small = prunus.shrink(model, graph, {"up": kept})
    closed = [number for number in range(5) if number not in kept]
    assert small.up.shape == (len(kept), 8, 12) and small.router.weight.shape == (len(kept), 8)
    with torch.no_grad():
        torch.testing.assert_close(small(X), model(X, closed=closed))
        assert not torch.allclose(small(X), model(X), atol=1e-3)


def test_as_many_stay_as_are_picked():
    model, graph = made()
    assert min_units(graph, floor=0)["up"] == (2, "topk in the model itself")
    with pytest.raises(
        UserError, match="must hold 2 indices or more, because topk in the model itself takes no fewer"
    ):
        prunus.shrink(model, graph, {"up": [3]})
    with pytest.raises(BudgetError, match=r"up keeps 2 of 5 \(topk in the model itself"):
        scores = prunus.scores.magnitude(model, graph)
        prunus.select(graph, scores, prunus.Budget(params=0.1), only=["experts"])
    keep = prunus.select(graph, scores, prunus.Budget(params=0.6), only=["experts"])
    assert len(keep["up"]) == 2


@pytest.mark.parametrize(
    "also",
    [
        lambda numbers: numbers.float().mean(),
        lambda numbers: 1.0 * (numbers == 3).sum(),
        lambda numbers: nn.functional.one_hot(numbers, 5).sum() * 0.1,
        lambda numbers: torch.zeros(5).scatter(0, numbers[0], 1.0).sum(),
        lambda numbers: torch.arange(5.0)[numbers].sum(),
        lambda numbers: numbers.sort(-1).values.sum() * 0.1,
    ],
    ids=["mean", "equal", "one_hot", "scatter", "table", "sort"],
)
@pytest.mark.filterwarnings("ignore:traced with real tensors")
def test_what_computes_with_numbers_of_experts_fixes_them(also):
    _, graph = made(also=also)
    assert "experts" not in graph.kinds.values()
    assert graph.shape("up", {"stem": [0]}) == (5, 1, 12)


@pytest.mark.filterwarnings("ignore:5 parameters are never used")
def test_numbers_that_are_an_output_fix_them():
    class Telling(Experts):
        def forward(self, x):
            shares, numbers = self.router(x[:, :1].expand(-1, 8)).topk(2, -1)
            return self.up[numbers].sum((1, 2, 3)) + shares.sum(-1), numbers

    assert "experts" not in prunus.trace(Telling().eval(), X).kinds.values()


@pytest.mark.filterwarnings("ignore:3 parameters are never used")
def test_moved_numbers_still_pick():
    class Moving(Experts):
        def forward(self, x):
            numbers = self.router(self.stem(x)).topk(2, -1).indices
            numbers = numbers.t().contiguous()[1:].to(torch.int32).expand(3, -1).unsqueeze(-1)
            return self.up[numbers].sum((0, 2, 3))

    torch.manual_seed(0)
    model = Moving().eval()
    graph = prunus.trace(model, X)
    assert graph.kinds["up"] == "experts"
    prunus.shrink(model, graph, {"up": [0, 2, 3]})


def test_gates_leave_experts_alone():
    """A gate at zero would not keep a router from picking an expert."""
    _, graph = made()
    assert "up" in inexact_axes(graph)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2Moe"])
def test_experts_of_transformers_shrink_and_are_loaded_again(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the models are transformers'")
    imported_beside_torchvision("transformers.models.mixtral.modeling_mixtral")
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    sizes |= (
        {"num_local_experts": 4} if name == "Mixtral" else {"num_experts": 4, "moe_intermediate_size": 16}
    )
    config = getattr(transformers, f"{name}Config")(**sizes)
    kind = getattr(transformers, f"{name}ForCausalLM")
    model, tokens = kind(config).eval(), torch.arange(12).view(2, 6)
    with pytest.raises(UserError, match=r"it has .* of mlp.*set_experts_implementation\('batched_mm'\)"):
        min_units(prunus.trace(model, {"input_ids": tokens}), only=["experts"])
    model.set_experts_implementation("batched_mm")
    graph = prunus.trace(model, {"input_ids": tokens})
    experts = [axis for axis, its in graph.kinds.items() if its == "experts"]
    assert len(experts) == 2 and [
        axis for axis, its in graph.kinds.items() if its == "mlp" and "experts" in axis
    ]
    small = prunus.shrink(model, graph, {experts[0]: [0, 2, 3], experts[1]: [1, 2, 3]})
    small.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = small(tokens).logits
        torch.testing.assert_close(again(tokens).logits, expected, rtol=1e-4, atol=1e-5)
        small.set_experts_implementation("grouped_mm")
        torch.testing.assert_close(small(tokens).logits, expected, rtol=1e-4, atol=1e-5)
