"""Scores of blocks against their definitions. Source: ours."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import scores, zoo
from prunus.errors import UserError
from tests.lib.blocks import IDS, Block, llama

BATCHES = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,))) for _ in range(3)]


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = zoo.build("resnet20").eval()
    return model, prunus.trace(model, BATCHES[0][0][:1])


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    model = zoo.build("vit_tiny").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model, prunus.trace(model, BATCHES[0][0][:1])


def slope(model: nn.Module, module: str, x, y, branch: bool) -> float:
    """The derivative of the loss with respect to a gate on what a module adds."""
    gate = torch.ones((), requires_grad=True)
    model = copy.deepcopy(model)

    def hook(module, args, output):
        return gate * output if branch else args[0] + gate * (output - args[0])

    model.get_submodule(module).register_forward_hook(hook)
    return torch.autograd.grad(F.cross_entropy(model(x), y), gate)[0].item()


@pytest.mark.parametrize("which", ["resnet", "vit"])
def test_taylor_is_the_squared_slope_of_a_gate_on_a_block(which, request):
    model, graph = request.getfixturevalue(which)
    found = scores.taylor(model, graph, F.cross_entropy, BATCHES, depth=True)
    for axis, block in list(graph.blocks.items())[1:6]:
        slopes = [slope(model, block.module, x, y, block.branch) for x, y in BATCHES]
        wanted = sum(each**2 for each in slopes) / len(slopes)
        assert found[axis].shape == (1,) and found[axis].item() == pytest.approx(wanted, rel=1e-3)


def test_units_score_the_same_beside_blocks(resnet):
    model, graph = resnet
    alone = scores.taylor(model, graph, F.cross_entropy, BATCHES)
    beside = scores.taylor(model, graph, F.cross_entropy, BATCHES, depth=True)
    assert alone.keys() == graph.axes.keys() and beside.keys() == graph.axes.keys() | graph.blocks.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_a_block_that_adds_nothing_scores_zero(resnet):
    model, graph = copy.deepcopy(resnet[0]), resnet[1]
    nn.init.zeros_(model.layer2[1].bn2.weight)
    nn.init.zeros_(model.layer2[1].bn2.bias)
    assert scores.taylor(model, graph, F.cross_entropy, BATCHES, depth=True)["layer2.1:depth"].item() == 0
    assert abs(scores.influence(model, graph, BATCHES)["layer2.1:depth"].item()) < 1e-6


def test_a_block_that_writes_to_its_input_is_scored_by_what_it_was_given():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return x.add_(self.inner(x))

    class Plain(InPlace):
        def forward(self, x):
            return x + self.inner(x)

    def stack(kind):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 6), kind(), kind(), kind(), nn.Linear(6, 3)).eval()

    data = [(torch.randn(5, 6), torch.randint(3, (5,)))]
    found = [
        scores.influence(model, prunus.trace(model, data[0][0]), data)
        for model in (stack(InPlace), stack(Plain))
    ]
    assert found[0].keys() == found[1].keys() == {"1:depth", "2:depth", "3:depth"}
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_influence_is_one_less_the_cosine_at_each_position(resnet, vit):
    for (model, graph), module, dim in ((resnet, "layer1.1", 1), (vit, "blocks.4", 2)):
        found = scores.influence(model, graph, BATCHES)
        assert found.keys() == {name for name, block in graph.blocks.items() if not block.branch}
        cosines = []

        def see(module, args, output, dim=dim, cosines=cosines):
            cosines.append(F.cosine_similarity(args[0], output, dim=dim).mean())

        model = copy.deepcopy(model)
        model.get_submodule(module).register_forward_hook(see)
        for x, _ in BATCHES:
            model(x)
        wanted = 1 - torch.stack(cosines).mean()
        torch.testing.assert_close(found[f"{module}:depth"], wanted.reshape(1).detach())


def test_padding_has_no_influence():
    model, _ = llama(layers=4)
    graph = prunus.trace(model, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    plain = [({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, None)]
    ids = torch.cat([IDS, torch.zeros(1, 4, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones_like(IDS), torch.zeros(1, 4, dtype=torch.long)], 1)
    padded = [({"input_ids": ids, "attention_mask": mask}, None)]
    one, other = scores.influence(model, graph, plain), scores.influence(model, graph, padded)
    for name in one:
        torch.testing.assert_close(one[name], other[name])
    a, b = scores.features(model, graph, plain), scores.features(model, graph, padded)
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def test_features_are_means_over_positions(resnet):
    model, graph = resnet
    found = scores.features(model, graph, BATCHES)
    assert {name: tuple(each.shape) for name, each in found.items()}["layer2.1:depth"] == (12, 32)
    assert found["layer3.2:depth"].shape == (12, 64)


@pytest.mark.parametrize("of", ["parameters", "outputs"])
def test_gradient_norms_by_hand(resnet, of):
    model, graph = resnet
    found = scores.gradient_norms(model, graph, F.cross_entropy, BATCHES, of)
    lengths, seen = [], {}
    own = copy.deepcopy(model)
    own.layer2[1].register_forward_hook(lambda module, args, output: seen.update(output=output))
    for x, y in BATCHES:
        loss = F.cross_entropy(own(x), y)
        wanted = list(own.layer2[1].parameters()) if of == "parameters" else [seen["output"]]
        parts = torch.autograd.grad(loss, wanted)
        lengths.append(sum(part.square().sum() for part in parts).sqrt())
    torch.testing.assert_close(found["layer2.1:depth"], torch.stack(lengths).mean().reshape(1))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_models_without_blocks_and_data_without_batches(resnet):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    graph = prunus.trace(model, torch.randn(2, 4))
    with pytest.raises(
        UserError, match=r"influence: this model has no block that can be skipped; .*: no input"
    ):
        scores.influence(model, graph, [(torch.randn(2, 4), None)])
    with pytest.raises(UserError, match="influence: expected at least one batch"):
        scores.influence(*resnet, [])


def test_blocks_before_every_weight_that_may_shrink_are_scored_too():
    torch.manual_seed(0)
    fixed = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))  # no axis, because of the reshape

    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = fixed

        def forward(self, x):
            return x + self.inside(x).reshape(x.shape)

    model = nn.Sequential(Added(), Block(5, 8), Block(5, 8), nn.Linear(5, 2))
    x = torch.randn(6, 5)
    graph = prunus.trace(model, x)
    found = scores.taylor(model, graph, lambda output, _: output.square().sum(), [(x, None)], depth=True)
    assert graph.blocks.keys() <= found.keys() and len(graph.blocks) >= 3


def test_scores_of_blocks_open_wrapped_models_and_refuse_what_they_do_not_know(resnet):
    model, graph = resnet
    wrapped = nn.DataParallel(model)
    one, other = (scores.influence(each, graph, BATCHES) for each in (model, wrapped))
    assert one.keys() == other.keys() and all(torch.equal(one[axis], other[axis]) for axis in one)
    with pytest.raises(UserError, match="unknown gradient 'output'"):
        scores.gradient_norms(model, graph, F.cross_entropy, BATCHES, of="output")


def test_a_model_of_branches_alone_has_no_influence():
    torch.manual_seed(0)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
            self.parts = nn.ModuleList(
                nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(3)
            )

        def forward(self, x):
            x = self.stem(x)
            for part in self.parts:
                x = x + part(x)
            return self.head(x)

    model, x = Branches(), torch.randn(4, 5)
    graph = prunus.trace(model, x)
    assert graph.blocks and all(block.branch for block in graph.blocks.values())
    with pytest.raises(UserError, match="all blocks of this model are branches"):
        scores.influence(model, graph, [(x, None)])
