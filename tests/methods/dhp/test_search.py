"""DHP's search: in a training of our own and in the user's loop, to the budget, resumable, and what it refuses.

I6 to I12 of its specification, as far as they are about the search; the parts it is made of have files of their own.
"""

import copy
import io
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import prunus
from prunus import gates, surgery
from prunus.export import files
from prunus.methods.dhp import DHP, Config
from prunus.selection import Budget
from prunus.surgery import copies, slicing
from tests.lib.dhp import Small, X, adamw, assert_met, batches, figure, searched, sgd, small, step_alone


# --------------------------------------------------------------------------------- the user's own loop
@pytest.mark.parametrize("kind", ["sgd", "adamw", "scheduled"])
def test_the_documented_loop(kind):
    """The loop of DHP's docstring and the docs gives a plain network of the model's class within the budget."""
    batches_of_ten, model, example = list(batches(60)), small(), X
    before, keys = prunus.macs(prunus.trace(model, X)), list(model.state_dict())

    search = DHP(model, example, prunus.Budget(macs=0.5), steps=len(batches_of_ten))
    make = adamw if kind == "adamw" else sgd
    optimizer = make(search.groups(weight_decay=5e-4))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches_of_ten))
    losses = []
    for x, y in batches_of_ten:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        search.step(optimizer)
        if kind == "scheduled":
            scheduler.step()
        losses.append(loss.item())
    searching = copy.deepcopy(model).eval()
    found = search.finish()

    assert type(found) is Small and list(found.state_dict()) == keys
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    cost = prunus.macs(prunus.trace(found, X))
    assert cost == prunus.macs(search.graph, search.keep) and 0.45 * before < cost <= 0.5 * before
    x, _ = next(batches(1, seed=9))
    with torch.no_grad():  # removal changes nothing
        torch.testing.assert_close(found.eval()(x), searching(x), rtol=1e-4, atol=1e-5)
    assert not any(map(parametrize.is_parametrized, [*found.modules(), *model.modules()]))
    again = search.finish()
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("compact", [False, True])
def test_i4_whatever_trains_on_after_the_decision_what_goes_stays_at_zero(compact):
    """Momentum would move it, and if nothing is cut, gradients too."""
    search = searched(Budget(macs=0.5), Config(round_to=1, ramp=0.3, compact=compact), optimizer=adamw)
    stays = search.as_mask(search.keep)
    assert torch.equal(search.latents.values != 0, stays) and not stays.all()
    searching = copy.deepcopy(search.model).eval()
    x, _ = next(batches(1, seed=9))
    with torch.no_grad():
        torch.testing.assert_close(search.finish().eval()(x), searching(x), rtol=1e-4, atol=1e-5)


def test_networks_without_norms_are_searched_too():
    search = searched(Budget(macs=0.5), model=small(norm=lambda _: nn.Identity()), optimizer=adamw)
    found = search.finish()
    assert figure(search, search.keep) <= 0.5 * figure(search)
    assert all(tensor.isfinite().all() for tensor in found.state_dict().values())


@pytest.mark.parametrize(
    "config",
    [
        Config(start="scratch"),
        Config(start="scratch", latents="normal"),
        Config(latents="norms", cost_aware=False),
    ],
)
def test_other_starts_and_costs(config):
    search = searched(Budget(macs=0.5), config)
    assert search.finish()(X).isfinite().all()
    assert figure(search, search.keep) <= 0.5 * figure(search)


def test_widths_are_learned_not_arbitrary():
    """Among copies of few informative features and many uninformative ones, the latter are removed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():  # half of the units are dead for every image: no gradient holds their latents up
        model[1].bias[::2] = -100.0
    search = searched(Budget(macs=0.5), Config(round_to=1), model=model)
    search.finish()
    assert search.keep["1"] == list(range(1, 32, 2))


@pytest.mark.parametrize("round_to", [1, None])
@pytest.mark.parametrize(
    "budget",
    [{"macs": 0.3}, {"macs": 0.5}, {"params": 0.4}, {"memory_mb": 0.6}, {"params": 2000}],
)
def test_the_budget_is_met_at_most_and_nearly(budget, round_to):
    search = searched(Budget(**budget), Config(round_to=round_to))
    found = search.finish()
    assert_met(search)
    assert getattr(prunus, search.budget.name)(prunus.trace(found, X)) == pytest.approx(
        figure(search, search.keep)
    )


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("budget", [0.5, 0.62])
def test_widths_are_the_multiples_asked_for(budget, compact):
    """Units leave one by one, and what is left of an axis is seldom a multiple."""
    search = searched(Budget(macs=budget), Config(round_to=4, compact=compact))
    for name, units in search.keep.items():
        assert len(units) % 4 == 0, name
        if len(units) < search.graph.axes[name].size:  # nor does it leave much of the budget unused
            more = search.keep | {name: range(len(units) + 4)}
            assert figure(search, more) > budget * figure(search), name


@pytest.mark.filterwarnings("ignore:dhp. . units still in use:UserWarning")
def test_widths_are_the_multiples_asked_for_with_pressure_on_all_latents():
    search = searched(Budget(macs=0.3), Config(round_to=4, pressure="all"), steps=120)
    assert all(len(units) % 4 == 0 for units in search.keep.values())


@pytest.mark.parametrize(
    "config", [Config(cost_aware=True), Config(mode="paper", strength=0.2), Config(compact=False)]
)
def test_the_budget_is_met_whatever_the_way(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        search = searched(
            Budget(memory_mb=0.6) if config.cost_aware else Budget(macs=0.5), replace(config, round_to=1)
        )
        search.finish()
    assert_met(search)


@pytest.mark.parametrize("pressure", ["least", "all"])
@pytest.mark.parametrize("steps", [5, 15, 30])
def test_a_short_search_does_not_lose_everything_at_once(steps, pressure):
    """The latents that were learned decide: at that time, no more of them are zero than needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        search = searched(Budget(macs=0.5), Config(round_to=1, pressure=pressure), steps=steps)
        search.finish()
    assert min(record["ratio"] for record in search.records) > 0.5 - 0.15
    assert_met(search)


def test_the_plan_is_followed():
    search = searched(Budget(macs=0.4), Config(round_to=1), steps=120)
    assert search.finish()(X).shape == (1, 10)
    late = [record for record in search.records if 40 < record["step"] < 80]
    assert len(late) > 20 and all(abs(record["ratio"] - record["plan"]) < 0.15 for record in late)
    plans = [record["plan"] for record in search.records]
    assert plans == sorted(plans, reverse=True) and plans[0] > 0.98 and plans[-1] >= 0.4
    assert search.left_over <= 3


def test_during_the_search_the_network_becomes_smaller_and_stays_consistent():
    sizes = []

    def each(search, optimizer):
        sizes.append(sum(p.numel() for p in search.model.parameters()))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter].get("momentum_buffer")
                assert state is None or state.shape == parameter.shape

    searched(Budget(macs=0.4), Config(round_to=1), each=each)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 4 and sizes[-1] < 0.6 * sizes[0]
    sizes.clear()
    searched(Budget(macs=0.4), Config(round_to=1, compact=False), each=each)
    assert len(set(sizes)) == 1


# ---------------------------------------------------------------------------- I7: the proximal step
def still(config, steps=1000, budget=None, model=None):
    """A search whose losses carry no information: latents move by the threshold alone."""
    search = DHP(model or small(), X, budget or Budget(macs=0.5), steps=steps, config=config)
    optimizer = torch.optim.SGD(search.groups(weight_decay=0.0), lr=0.1)
    return search, optimizer


def test_i7_every_step_takes_the_learning_rate_of_then_times_the_strength():
    search, optimizer = still(Config(mode="paper", start="given", latents="normal", strength=0.02))
    values = search.latents.values.data
    for lr in (0.1, 0.5, 0.0, 0.01):
        for group in optimizer.param_groups:
            group["lr"] = lr
        before = values.clone()
        step_alone(search, optimizer)
        expected = before.sign() * (before.abs() - lr * 0.02).clamp_min(0)
        free = search.units.ranks(before.abs()) >= search.units.floors[search.units.owners]
        assert free.sum() > 30
        torch.testing.assert_close(values[free], expected[free])
        assert (values * before >= 0).all()


def test_i7_the_latents_own_learning_rate_counts():
    search, _ = still(Config(mode="paper", start="given", latents="ones", strength=0.1))
    others = [p for p in search.model.parameters() if p is not search.latents.values]
    optimizer = torch.optim.SGD(
        [{"params": others, "lr": 7.0}, {"params": [search.latents.values], "lr": 0.3}]
    )
    step_alone(search, optimizer)
    torch.testing.assert_close(search.latents.values.data, torch.full_like(search.latents.values, 0.97))


def test_i7_in_mode_exact_what_is_left_of_an_axis_keeps_its_mean_size():
    search, optimizer = still(
        Config(start="scratch", latents="normal", strength=1.0), budget=Budget(macs=0.1)
    )
    for _ in range(4):
        before = search.latents.values.data.clone()
        step_alone(search, optimizer)
        after = search.latents.values.data
        assert (after * before >= 0).all() and not after[before == 0].any()
        for place in search.latents.places.values():
            left = after[place] != 0
            assert after[place][left].abs().mean() == pytest.approx(
                before[place][left].abs().mean().item(), rel=1e-4
            )
            order = before[place][left].abs().argsort()
            assert (after[place][left].abs()[order].diff() >= -1e-6).all()
    assert 0.2 < (after == 0).float().mean() < 0.9


@pytest.mark.parametrize("mode", ["exact", "paper"])
@pytest.mark.parametrize("floor", [2, 0.25])
def test_i10_however_strong_every_axis_ends_at_its_floor_and_what_is_frozen_stays(mode, floor):
    config = Config(mode=mode, strength=1e9, floor=floor, freeze=("a",), start="given", round_to=1)
    whole = prunus.trace(small(), X)
    least = {
        n: axis.size if n == "a" else 2 if floor == 2 else axis.size // 4 for n, axis in whole.axes.items()
    }
    cost = prunus.macs(whole, {n: range(units) for n, units in least.items()})
    search = searched(Budget(macs=cost), config, steps=20)
    assert "a" not in search.latents.places
    assert search.records[0]["widths"] == [least[n] for n in search.latents.places]
    found = search.finish()
    assert {n: len(units) for n, units in search.keep.items()} == least
    assert found.a.out_channels == 24 and prunus.macs(prunus.trace(found, X)) == cost


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_i10_too_weak_nothing_goes_and_the_last_cut_meets_the_budget_and_says_so(mode):
    config = Config(mode=mode, strength=1e-12, start="given", latents="ones", round_to=1)
    with pytest.warns(
        UserWarning, match=r"units still in use were cut .* after 30 steps .* at 1\.000 .*not at 0\.500"
    ):
        search = searched(Budget(macs=0.5), config, steps=30)
    assert all(record["ratio"] == 1 for record in search.records)
    assert search.left_over == len(search.latents.values) - sum(map(len, search.keep.values())) > 5
    search.finish()
    assert_met(search)


def test_i10_axes_at_the_floor_rest():
    """They would lose nothing any more, only size."""
    floor = {"point": 0.9, "*": 1}
    search, optimizer = still(
        Config(mode="paper", start="given", latents="normal", strength=0.3, floor=floor),
        budget=Budget(macs=0.05),
    )
    values, point, a = search.latents.values.data, search.latents.places["point"], search.latents.places["a"]
    for _ in range(20):
        before = values.clone()
        step_alone(search, optimizer)
    assert search.above_threshold()[point].sum() == 18 and search.keep is None
    assert torch.equal(values[point], before[point]) and not torch.equal(values[a], before[a])


# --------------------------------------------------------------------- I8, I11: what comes out is plain
@pytest.fixture(scope="module")
def finished():
    """A finished search and its network."""
    search = searched(Budget(macs=0.5), Config(round_to=1))
    return search, search.finish()


def test_i8_every_layer_says_its_size_and_runs_on_other_batches_and_images(finished):
    search, found = finished
    widths = {name: len(units) for name, units in search.keep.items()}
    stem, a, point = widths["stem"], widths["a"], widths["point"]
    assert (stem, a, point) != (16, 24, 20)
    assert (found.stem.out_channels, found.norm.num_features) == (stem, stem)
    assert (found.a.in_channels, found.a.out_channels, found.norm_a.num_features) == (stem, a, a)
    assert (found.depth.groups, found.depth.in_channels, found.depth.out_channels) == (stem, stem, stem)
    assert (found.point.in_channels, found.point.out_channels, found.head.in_features) == (stem, point, point)
    assert {n: t.shape for n, t in copies.effective_tensors(found).items()} == {
        n: search.graph.shape(n, search.keep) for n in search.graph.layouts
    }
    for batch in (1, 5):
        for side in (8, 13):
            assert found(torch.randn(batch, 1, side, side)).shape == (batch, 10)


def test_i8_saved_loaded_copied_and_exported(finished, tmp_path):
    search, found = finished
    found = copy.deepcopy(found).eval()
    x = torch.randn(3, 1, 8, 8)
    file = io.BytesIO()
    torch.save(found.state_dict(), file)
    file.seek(0)
    other = surgery.shrink(small(5), search.graph, search.keep).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), found(x))
    prunus.save(tmp_path / "small", found, search.keep, search.graph)
    assert torch.equal(prunus.load(tmp_path / "small", small(6)).eval()(x), found(x))
    assert "model.pt2 written" in files.export_model(tmp_path, found, torch.zeros(1, 1, 8, 8))[0]


def test_i11_no_residue_and_training_goes_on(finished):
    _, found = finished
    found = copy.deepcopy(found).train()
    assert not any(
        isinstance(m, gates.Gates | gates.Gate | parametrize.ParametrizationList) for m in found.modules()
    )
    assert [type(m) for m in found.modules()] == [type(m) for m in small().modules()]
    assert list(found.state_dict()) == list(small().state_dict())
    optimizer = sgd(found.parameters())
    before = [p.detach().clone() for p in found.parameters()]
    losses = []
    for x, y in batches(10, seed=0):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(found(x), y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not any(torch.equal(p, b) for p, b in zip(found.parameters(), before, strict=True))


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_i3_the_small_weights_are_bit_for_bit_those_made_at_the_kept_places(mode):
    strength = 0.3 if mode == "paper" else None
    search = searched(Budget(macs=0.5), Config(mode=mode, round_to=1, strength=strength, compact=False))
    made = {n: t.detach().clone() for n, t in copies.effective_tensors(search.model).items()}
    found = copies.effective_tensors(search.finish())
    for n, tensor in found.items():
        assert torch.equal(tensor, slicing.slice_tensor(made[n], search.graph.layouts[n], search.keep)), n
