"""Experts that a router picks: an axis, as long as nothing computes with their numbers."""

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import BudgetError, UserError
from prunus.gates import inexact_axes
from prunus.selection import min_units
from tests.lib.mixtures import OF_FAMILY, TOKENS, mixture

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


def test_numbers_of_experts_also_pick_among_scores():
    """The shares are those of other scores than the ones by which experts are picked (DeepSeek)."""

    class Gathering(Experts):
        def forward(self, x):
            x = self.stem(x)
            scores = self.router(x).sigmoid()
            numbers = (scores + self.router.bias).topk(2, -1).indices
            hidden = (x[:, None, None] @ self.up[numbers]).relu() @ self.down[numbers]
            return self.head((hidden[:, :, 0] * scores.gather(1, numbers)[..., None]).sum(1))

    torch.manual_seed(0)
    model = Gathering().eval()
    graph = prunus.trace(model, X)
    assert graph.kinds["up"] == "experts"
    prunus.shrink(model, graph, {"up": [0, 2, 3]})


# ------------------------------------------------------------------------------- mixtures of transformers
def axes_of(graph, kind):
    return [axis for axis, own in graph.kinds.items() if own == kind and "shared" not in axis]


@pytest.fixture(scope="module", params=OF_FAMILY)
def traced(request):
    model = mixture(request.param)
    return model, prunus.trace(model, {"input_ids": TOKENS})


def test_the_number_of_experts_is_an_axis_and_the_model_stays_as_it_is(traced):
    model, graph = traced
    experts = axes_of(graph, "experts")
    assert len(experts) == 2 and len(axes_of(graph, "mlp")) == 2
    assert all(min_units(graph, floor=0)[axis][0] == 2 for axis in experts)
    assert model.config._experts_implementation == "grouped_mm"
    assert all(graph.multiples[axis] == 4 for axis in axes_of(graph, "mlp"))  # grouped_mm wants that
    assert all(graph.multiples[axis] == 1 for axis in experts)


def test_costs_and_roles_are_those_of_the_model_as_it_is_called(traced):
    """The way in which it is traced copies the weights of an expert for each token."""
    _, graph = traced
    assert any(op.name == "_grouped_mm" for op in graph.ops) and not any(op.picks for op in products(graph))
    roles = {
        (member.tensor.rpartition(".")[2], member.role)
        for axis in axes_of(graph, "mlp")
        for member in graph.members(axis)
    }
    assert roles >= {("gate_up_proj", "produces"), ("down_proj", "consumes")}


def products(graph):
    return [
        op for op in graph.ops if op.name == "index" and not op.reads()[0].data and op.reads()[0].dims[2:]
    ]


@pytest.mark.parametrize("kinds", [["experts"], ["mlp"], ["experts", "mlp"]], ids="+".join)
def test_experts_and_their_widths_shrink_alone_and_together(traced, kinds):
    model, graph = traced
    keep = {axis: [0, 2, 3] for axis in axes_of(graph, "experts") if "experts" in kinds}
    keep |= {axis: list(range(4, 12)) for axis in axes_of(graph, "mlp") if "mlp" in kinds}
    small = prunus.shrink(model, graph, keep)  # proved with grouped_mm, with a cache, too
    with torch.no_grad():
        expected = small(TOKENS).logits
        small.set_experts_implementation("eager")
        torch.testing.assert_close(small(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)
    assert model.config._experts_implementation == "grouped_mm"


def test_a_config_says_how_many_experts_there_are(traced, tmp_path):
    model, graph = traced
    scores = prunus.scores.magnitude(model, graph)
    budget = prunus.Budget(params=0.8)
    keep = prunus.select(graph, scores, budget, only=["experts", "mlp"], floor={"mlp": 1.0}, uniform=True)
    assert all(len(keep[axis]) < 4 for axis in axes_of(graph, "experts"))
    small = prunus.shrink(model, graph, keep)
    prunus.check_config(small)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, small(TOKENS).logits, rtol=1e-4, atol=1e-5)
    told = [
        small.generate(TOKENS, do_sample=False, max_new_tokens=4, min_new_tokens=4, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*told)


@pytest.mark.parametrize("implementation", ["batched_mm", "eager"])
def test_another_implementation_stays_as_well(implementation, recwarn):
    model = mixture("Mixtral")
    model.set_experts_implementation(implementation)
    graph = prunus.trace(model, {"input_ids": TOKENS})
    assert not [warning for warning in recwarn if "real tensors" in str(warning.message)]
    assert model.config._experts_implementation == implementation
    experts, widths = axes_of(graph, "experts"), axes_of(graph, "mlp")
    assert len(experts) == 2
    assert {m.role for m in graph.members(widths[0])} == {"produces", "consumes"}
    small = prunus.shrink(model, graph, {experts[0]: [0, 2], widths[0]: list(range(8))})
    assert small.config._experts_implementation == implementation


def test_a_failed_trace_leaves_the_implementation():
    model = mixture("Mixtral")
    with pytest.raises(prunus.errors.TraceError):
        prunus.trace(model, {"input_ids": torch.full((1, 4), 1.5)})
    assert model.config._experts_implementation == "grouped_mm"


def test_a_mixture_within_a_model_of_the_user_is_found():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = mixture("Mixtral"), mixture("Qwen3Moe")
            self.second.set_experts_implementation("eager")

        def forward(self, tokens):
            return self.first(tokens).logits + self.second(tokens).logits

    model = Own().eval()
    graph = prunus.trace(model, TOKENS)
    assert len(axes_of(graph, "experts")) == 4
    assert model.first.config._experts_implementation == "grouped_mm"
    assert model.second.config._experts_implementation == "eager"
    prunus.shrink(model, graph, {axis: [1, 2, 3] for axis in axes_of(graph, "experts")})


def test_a_proof_notices_an_expert_in_the_place_of_another():
    """With the implementation that the model has, in which experts are sorted."""
    model = mixture("Mixtral")
    graph = prunus.trace(model, {"input_ids": TOKENS})
    axis = axes_of(graph, "experts")[0]
    small = prunus.shrink(model, graph, {axis: [0, 2, 3]})
    small.model.layers[0].mlp.experts.num_experts = 2  # as if it had stayed behind, or run ahead
    with pytest.raises(prunus.errors.PruningError):
        from prunus.surgery.proof import prove

        prove(model, graph, {axis: [0, 2, 3]}, small)
