"""SGLP against its formulas. Source: arXiv:2410.14720, and ours."""

from itertools import combinations, pairwise

import pytest
import torch

import prunus
from prunus import methods
from prunus.errors import UserError
from prunus.methods import sglp
from prunus.run import Settings
from prunus.testing import tiny_task


def test_similarity_is_the_formula_of_cka():
    """tr(K H L H) / sqrt(tr(K H K H) tr(L H L H)), with H = I - 11^T / n."""
    torch.manual_seed(0)
    layers = [torch.randn(9, d) for d in (3, 5, 5)]
    layers.append(2.5 * layers[0] @ torch.linalg.qr(torch.randn(3, 3))[0] + 1)
    layers.append(torch.ones(9, 2))
    found = sglp.similarity(layers)
    centre = torch.eye(9) - 1 / 9

    def trace(a, b):
        return torch.trace(a @ a.T @ centre @ b @ b.T @ centre)

    for i, j in combinations(range(4), 2):
        a, b = layers[i], layers[j]
        wanted = trace(a, b) / (trace(a, a) * trace(b, b)).sqrt()
        assert found[i, j].item() == pytest.approx(wanted.item(), rel=1e-4)
    torch.testing.assert_close(found, found.T)
    assert found[0, 3].item() == pytest.approx(1, abs=1e-5)  # blind to scale, rotation and shift
    assert found[4].abs().max() < 1e-6


@pytest.mark.parametrize("number", [1, 2, 3, 4, 8])
def test_segments_have_the_least_variance_of_all_splits(number):
    torch.manual_seed(number)
    values = torch.randn(8).double()

    def cost(cuts):
        edges = [0, *cuts, 8]
        return sum(float((values[a:b] - values[a:b].mean()).square().sum()) for a, b in pairwise(edges))

    parts = sglp.segment(values, number)
    assert [i for part in parts for i in part] == list(range(8)) and len(parts) == number
    best = min(cost(cuts) for cuts in combinations(range(1, 8), number - 1))
    assert cost([part[0] for part in parts[1:]]) == pytest.approx(best)


def test_the_number_of_segments_follows_the_steps_in_a_sequence():
    assert sglp.fewest_segments(torch.tensor([1.0, 1.01, 5.0, 5.02, 9.0, 9.01])) == 3
    assert sglp.fewest_segments(torch.ones(6)) == 1


def test_segments_give_their_weakest_in_turn_and_one_of_each_goes_last():
    names = list("abcdef")
    norms = {name: torch.tensor([float(norm)]) for name, norm in zip(names, (3, 1, 2, 9, 4, 8), strict=True)}
    parts = [[0, 1, 2, 3], [4, 5]]
    assert sglp.going(names, parts, norms, "within") == ["b", "c", "e", "a", "f", "d"]
    assert sglp.going(names, parts, norms, "segments") == ["b", "c", "a", "d", "e", "f"]


def test_a_run_skips_blocks_and_its_folder_brings_the_model_back(tmp_path):
    task = tiny_task("stacked")
    settings = Settings(epochs=1, base_epochs=1)
    result = prunus.prune(
        task=task, budget=prunus.Budget(macs=0.6), method="sglp", out=tmp_path / "run", settings=settings
    )
    small = prunus.load(tmp_path / "run", tiny_task("stacked").model)
    assert len(small.links) == 3 and len(tiny_task("stacked").model.links) == 6
    widths = result.values["widths"]
    assert sum(kept == 0 for kept, _ in widths.values()) == 3
    assert widths["links.0:depth"] == widths["links.5:depth"] == [1, 1]
    assert result.values["after"]["params"] == sum(parameter.numel() for parameter in small.parameters())


@pytest.mark.parametrize("option", ["how=per_cost", "prefer=quality", "round_to=8", "uniform=true"])
def test_options_of_widths_are_none_of_its_own(option):
    name = option.partition("=")[0]
    with pytest.raises(UserError, match=f"unknown option of method sglp '{name}'"):
        methods.configure(sglp.Config, [option], "option of method sglp")


def test_more_segments_than_blocks_are_refused():
    with pytest.raises(UserError, match="at most the number of blocks, 6, but is 7"):
        sglp.Config(segments=7).check(tiny_task("stacked").graph, prunus.Budget(macs=0.6))
