"""Weights that reach a product by another way than a layer: their widths shrink, and their roles are known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import UserError
from tests.lib.rules import halve


class Net(nn.Module):
    """A layer (5 to 8), a function of its output and of weights, and a layer down from 8."""

    def __init__(self, function, *shapes):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.function = nn.Linear(5, 8), nn.Linear(8, 3), function
        self.weights = nn.ParameterList(nn.Parameter(0.3 * torch.randn(shape)) for shape in shapes)

    def forward(self, x):
        return self.down(self.function(self.up(x).relu(), *self.weights))


def tokens_first(h, w):
    """A layer over transposed tokens, for which torch multiplies a batch of matrices."""
    return F.linear(F.linear(h.transpose(1, 2), w).transpose(1, 2), torch.eye(8))


def experts(h, up, down):
    """Every token through every expert, in one product of a batch."""
    each = h.flatten(0, 1)[None].expand(len(up), -1, -1)
    return each.bmm(up).relu().bmm(down).sum(0).unflatten(0, h.shape[:2])


def chosen_experts(h, up, down):
    """Two experts for each token, picked by a table."""
    picked = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 1]])
    return ((h[:, :, None, None] @ up[picked]).relu() @ down[picked]).sum((2, 3))


def sorted_tokens(h, up, down):
    """Tokens sorted by their expert, in one product of groups."""
    ends = torch.tensor([3, 5, 8], dtype=torch.int32)
    rows = torch._grouped_mm(h.flatten(0, 1), up, offs=ends)
    return torch._grouped_mm(F.silu(rows), down, offs=ends).unflatten(0, h.shape[:2])


IN_OUT, OUT_IN, EXPERT = (
    ["consumes", "produces"],
    ["produces", "consumes"],
    ["produces", "consumes", "produces"],
)
NETS = {
    "x @ w": (lambda h, w: h @ w, [(8, 8)], [IN_OUT]),
    "w @ x": (lambda h, w: (w @ h.mT).mT, [(8, 8)], [OUT_IN]),
    "a transposed weight": (lambda h, w: F.linear(h, w.t()), [(8, 8)], [IN_OUT]),
    "einsum": (lambda h, w: torch.einsum("btc,cd->btd", h, w), [(8, 8)], [IN_OUT]),
    "einsum with heads": (lambda h, w: torch.einsum("btc,hcd->bthd", h, w).sum(2), [(3, 8, 8)], [EXPERT]),
    "a weight that is scaled": (lambda h, w, by: F.linear(h, by * w), [(8, 8), (8, 1)], [OUT_IN, OUT_IN]),
    "a weight less its mean": (lambda h, w: F.linear(h, w - w.mean(1, keepdim=True)), [(8, 8)], [OUT_IN]),
    "positions": (lambda h, p: p + h, [(1, 4, 8)], [["produces", "shifts", "shifts"]]),
    "experts": (experts, [(3, 8, 6), (3, 6, 8)], [EXPERT, EXPERT]),
    "experts picked for each token": (chosen_experts, [(3, 8, 6), (3, 6, 8)], [EXPERT, EXPERT]),
    "experts of sorted tokens": (sorted_tokens, [(3, 8, 8), (3, 8, 8)], [EXPERT, EXPERT]),
}


@pytest.mark.parametrize("name", NETS)
def test_weights_have_the_roles_of_the_product_that_they_enter(name):
    function, shapes, roles = NETS[name]
    model = Net(function, *shapes)
    graph, small = halve(model, torch.randn(2, 4, 5))
    assert [[graph.role(f"weights.{i}", d) for d in range(len(s))] for i, s in enumerate(shapes)] == roles
    assert small.up.weight.shape == (4, 5) and small.down.weight.shape == (3, 4)
    for old, new in zip(shapes, small.weights, strict=True):
        assert list(new.shape[-2:]) == [{8: 4, 6: 3}.get(n, n) for n in old[-2:]]


class Mixer(nn.Module):
    """A layer over transposed tokens, whose units are tied to no other layer's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(9, 8), nn.Linear(8, 9), nn.Linear(12, 3)

    def forward(self, x):
        return self.head((x + self.b(self.a(x.mT).relu()).mT).mean(1))


def test_a_layer_over_transposed_tokens_produces_its_units():
    graph, small = halve(Mixer(), torch.randn(2, 9, 12))
    assert {member.tensor: member.role for member in graph.members("a")} == {
        "a.weight": "produces",
        "a.bias": "shifts",
        "b.weight": "consumes",
    }
    assert small.a.weight.shape == (4, 9)


def test_widths_that_a_grouped_product_does_not_take_are_refused_and_not_chosen():
    """Its kernels want rows of a multiple of 16 bytes, which are 4 numbers here."""
    model, x = Net(sorted_tokens, (3, 8, 8), (3, 8, 16), (3, 16, 8)), torch.randn(2, 4, 5)
    model.function = lambda h, first, up, down: sorted_tokens(sorted_tokens(h, first, first), up, down)
    graph = prunus.trace(model.eval(), x)
    assert graph.multiples == dict.fromkeys(graph.axes, 4)
    with pytest.raises(UserError, match=r"multiple of 4 .*_grouped_mm"):
        prunus.shrink(model, graph, {"up": [0, 1, 2]})
    scores = prunus.scores.magnitude(model, graph)
    for round_to in (None, 1, 2):
        keep = prunus.select(graph, scores, prunus.Budget(params=0.7), round_to=round_to)
        assert any(len(kept) < graph.axes[name].size for name, kept in keep.items())
        prunus.shrink(model, graph, keep)
