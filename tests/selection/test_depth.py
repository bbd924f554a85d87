"""Blocks in costs and budgets. Source: ours."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus import zoo
from prunus.errors import BudgetError, UserError
from prunus.selection import CostMeter, Metered, cost, memory_mb, min_units
from tests.lib.blocks import llama, names

COSTS = (prunus.macs, prunus.params, memory_mb)
IMAGE = torch.randn(1, 3, 32, 32)


class Zero(nn.Module):
    """What is left of a branch."""

    def forward(self, x, *rest):
        return torch.zeros_like(x)


def without(model: nn.Module, **parts: nn.Module) -> nn.Module:
    """A copy of a model with other modules in some places, written with _ for the dots."""
    small = copy.deepcopy(model)
    for name, part in parts.items():
        small.set_submodule(name.replace("_", "."), part)
    return small


@pytest.fixture(scope="module")
def resnet():
    model = zoo.build("resnet20").eval()
    return model, prunus.trace(model, IMAGE)


@pytest.fixture(scope="module")
def vit():
    model = zoo.build("vit_tiny").eval()
    return model, prunus.trace(model, IMAGE)


def gone(*modules: str) -> dict[str, list[int]]:
    return {f"{module}:depth": [] for module in modules}


@pytest.mark.parametrize(
    "skipped",
    [["layer1.1"], ["layer1.0", "layer1.1", "layer1.2"], ["layer1.2", "layer2.1", "layer2.2", "layer3.1"]],
)
def test_costs_are_those_of_the_model_without_the_blocks(resnet, skipped):
    model, graph = resnet
    small = without(model, **{name.replace(".", "_"): nn.Identity() for name in skipped})
    alone = prunus.trace(small, IMAGE)
    for of in COSTS:
        assert of(graph, gone(*skipped)) == of(alone)


def test_costs_of_blocks_in_blocks(vit):
    model, graph = vit
    small = without(model, blocks_2=nn.Identity(), blocks_4_attention=Zero(), blocks_5=nn.Identity())
    alone = prunus.trace(small, IMAGE)
    keep = gone("blocks.2", "blocks.2.attention", "blocks.4.attention", "blocks.5")
    for of in COSTS:
        assert of(graph, keep) == of(alone)


def test_costs_of_blocks_and_units_together(vit):
    model, graph = vit
    keep = gone("blocks.2", "blocks.4.attention") | {"blocks.2.up": [0], "blocks.3.up": list(range(5))}
    small = prunus.shrink(model, graph, keep)
    alone = prunus.trace(small, IMAGE)
    for of in COSTS:
        assert of(graph, keep) == of(alone)


def test_the_peak_holds_what_a_skipped_block_returns():
    """An input that is read again after the block lives on, where the block would have replaced it."""

    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.links = nn.Linear(4, 64), nn.ModuleList(Link() for _ in range(4))

        def forward(self, x):
            x = self.start(x)
            for link in self.links:
                x = link(x)
            wide = torch.cat([x, x.tanh(), x.sigmoid()], 1)
            return x.sum() + wide.sum()

    class Link(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x):
            return x + self.inner(x)

    model, x = Long(), torch.randn(3, 4)
    graph = prunus.trace(model, x)
    for skipped in (["links.3"], ["links.2", "links.3"], ["links.1", "links.2", "links.3"]):
        small = without(model, **{name.replace(".", "_"): nn.Identity() for name in skipped})
        assert memory_mb(graph, gone(*skipped)) == memory_mb(prunus.trace(small, x))


def test_costs_are_differentiable_in_blocks(resnet):
    _, graph = resnet
    widths = torch.tensor([[float(axis.size) for axis in graph.deep.axes.values()]], requires_grad=True)
    cost.of(graph.deep, "macs", widths).sum().backward()
    slopes = dict(zip(graph.deep.axes, widths.grad[0].tolist(), strict=True))
    assert slopes["layer1.1:depth"] == prunus.macs(graph) - prunus.macs(graph, gone("layer1.1"))


# ---------------------------------------------------------------------------------------- selection
def test_blocks_alone_leave_widths_whole(resnet):
    _, graph = resnet
    scores = {name: torch.tensor([float(i)]) for i, name in enumerate(graph.blocks)}
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.8))
    assert {name for name, units in keep.items() if not units} == {"layer1.1:depth", "layer1.2:depth"}
    assert all(len(keep[name]) == axis.size for name, axis in graph.axes.items())
    assert prunus.macs(graph, keep) <= 0.8 * prunus.macs(graph)


@pytest.mark.parametrize("how", ["global", "per_cost", "curves", "uniform", "isomorphic"])
def test_blocks_compete_with_units(resnet, how):
    _, graph = resnet
    scores = prunus.scores.random(graph.deep, 0)
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.5), how=how)
    assert 0.4 < prunus.macs(graph, keep) / prunus.macs(graph) <= 0.5
    assert any(len(keep[name]) < axis.size for name, axis in graph.axes.items())


def test_a_worthless_block_goes_and_a_precious_one_stays(resnet):
    _, graph = resnet
    scores = {name: torch.ones(axis.size) for name, axis in graph.axes.items()}
    blocks = {name: torch.tensor([1e9]) for name in graph.blocks} | {"layer2.1:depth": torch.tensor([1e-9])}
    keep = prunus.select(graph, scores | blocks, prunus.Budget(macs=0.7), how="per_cost")
    assert [name for name, units in keep.items() if not units] == ["layer2.1:depth"]


def test_the_first_and_the_last_block_stay_unless_they_are_named(vit):
    _, graph = vit
    scores = {name: torch.ones(1) for name in graph.blocks}
    least = min_units(graph.deep)
    assert least["blocks.0:depth"] == least["blocks.11.attention:depth"] == (1, "first or last block")
    assert least["blocks.5:depth"] == (0, "skipped")
    with pytest.raises(BudgetError, match=r"blocks.0:depth keeps 1 of 1 \(first or last block\)"):
        prunus.select(graph, scores, prunus.Budget(macs=0.1))
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.1), floor={"blocks.0*:depth": 0})
    assert keep["blocks.0:depth"] == [] and keep["blocks.11:depth"] == [0]


@pytest.mark.parametrize(
    "pattern", ["blocks.4:depth", "blocks.4", "blocks.4.attention", "blocks.4.attention.qkv"]
)
def test_a_block_that_holds_something_frozen_stays(vit, pattern):
    _, graph = vit
    scores = {name: torch.ones(1) for name in graph.blocks} | {"blocks.4:depth": torch.zeros(1)}
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.6), freeze=[pattern])
    assert keep["blocks.4:depth"] == [0] and sum(not units for units in keep.values()) >= 4
    assert prunus.select(graph, scores, prunus.Budget(macs=0.6))["blocks.4:depth"] == []


def test_blocks_without_a_score_stay(vit):
    _, graph = vit
    scores = {name: torch.ones(1) for name in graph.blocks if "attention" not in name}
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.6))
    assert all(keep[name] == [0] for name in graph.blocks if "attention" in name)


def test_blocks_can_be_chosen_by_a_given_price(resnet):
    """Its widths are those of the graph with blocks, the last of its axes."""
    _, graph = resnet
    scores = {name: torch.tensor([float(i)]) for i, name in enumerate(graph.blocks)}
    keep = prunus.select(
        graph, scores, prunus.Budget(macs=5), price=lambda widths: widths[:, len(graph.axes) :].sum(1)
    )
    assert [name for name, units in keep.items() if not units] == ["layer1.1:depth", "layer1.2:depth"]


def test_a_meter_of_widths_alone_does_not_choose_blocks(resnet):
    class Clock(CostMeter):
        def price(self, widths):
            raise NotImplementedError

        def select(self, budget, propose):
            raise NotImplementedError

        def figures(self, keep):
            raise NotImplementedError

        def local_copy(self):
            raise NotImplementedError

    _, graph = resnet
    scores = {name: torch.ones(1) for name in graph.blocks}
    with pytest.raises(UserError, match="because a Clock predicts them for widths alone"):
        prunus.select(graph, scores, Metered(latency_ms=0.5, meter=Clock()))


def test_a_pattern_that_names_no_block(resnet):
    _, graph = resnet
    scores = {name: torch.ones(1) for name in graph.blocks}
    with pytest.raises(UserError, match=r"'layer9.\*:depth' matches no axis.* Nearest: layer\d\.\d:depth"):
        prunus.select(graph, scores, prunus.Budget(macs=0.5), freeze=["layer9.*:depth"])


def test_the_plan_lists_blocks_that_a_keep_names(resnet):
    _, graph = resnet
    assert prunus.selection.plan(graph, gone("layer1.1")).axes["layer1.1:depth"] == (1, 0)
    assert names(graph)[1] == "layer1.1"


def test_depth_is_a_kind_of_axes(vit):
    _, graph = vit
    units, blocks = prunus.scores.random(graph, 0), {name: torch.rand(1) for name in graph.blocks}
    budget = prunus.Budget(macs=0.6)
    alone = prunus.select(graph, blocks, budget)
    assert prunus.select(graph, units | blocks, budget, only=["depth"]) == alone
    assert prunus.select(graph, blocks, budget, only=["*:depth"]) == alone
    keep = prunus.select(graph, units | blocks, budget, only=["depth", "mlp"])
    assert any(not keep[name] for name in graph.blocks)
    cut = {name for name, axis in graph.axes.items() if len(keep[name]) < axis.size}
    assert cut and {graph.kinds[name] for name in cut} == {"mlp"}
    keep = prunus.select(graph, units | blocks, budget, freeze=["depth"])
    assert all(keep[name] == [0] for name in graph.blocks)
    with pytest.raises(UserError, match=r"only='depth': no block has a score"):
        prunus.select(graph, units, budget, only=["depth"])


def test_weights_and_caches_of_skipped_blocks_cost_nothing():
    model, example = llama(layers=4)
    graph = prunus.trace(model, example)
    keep = gone("model.layers.1", "model.layers.2.self_attn")
    small = prunus.shrink(model, graph, keep)
    for of in (prunus.selection.weights_mb, prunus.selection.cache_mb):
        assert of(graph, keep) == of(prunus.trace(small, example)) < of(graph)
