"""Options and input that a DHP search refuses, and its messages."""

import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import prunus
from prunus.errors import BudgetError, FileError, TraceError, TrainingError, UserError
from prunus.methods.dhp import DHP, Config
from prunus.selection import Budget
from tests.lib.dhp import X, adamw, assert_met, batches, figure, searched, sgd, small, step_alone, untouched
from tests.lib.nets import build


def test_an_optimiser_made_before_the_search_is_refused():
    model = small()
    optimizer = sgd(model.parameters())
    search = DHP(model, X, Budget(macs=0.5), steps=10)
    F.cross_entropy(model(next(batches(1))[0]), next(batches(1))[1]).backward()
    with pytest.raises(UserError, match=r"does not hold the latents; make it after DHP"):
        search.step(optimizer)


def test_gradients_that_are_gone_already_are_missed():
    model = small()
    search = DHP(model, X, Budget(macs=0.5), steps=10)
    optimizer = sgd(search.groups(weight_decay=0.0))
    F.cross_entropy(model(next(batches(1))[0]), next(batches(1))[1]).backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(UserError, match=r"no gradient; call step after backward and before zero_grad"):
        search.step(optimizer)


def test_where_the_loss_feels_nothing_nothing_leaves():
    """As when gradients are zeroed before the step: all units would go at once, and those that stay be arbitrary."""
    model = small()
    search = DHP(model, X, Budget(macs=0.5), steps=60)
    optimizer = sgd(search.groups(weight_decay=5e-4))
    with pytest.warns(UserWarning, match="the network was at 1.000 of its cost"):
        for x, y in batches(60):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            search.step(optimizer)


def test_the_state_of_another_networks_search_is_refused():
    state = DHP(small(), X, Budget(macs=0.5), steps=60).state()
    other = DHP(*build("concat"), Budget(macs=0.5), steps=60)
    before = other.state()
    with pytest.raises(UserError, match=r"a state of 60 latents, .* does not fit"):
        other.restore(state)
    assert other.state() == before


@pytest.mark.parametrize("asked", [{"budget": Budget(macs=0.6)}, {"steps": 61}])
def test_the_state_of_a_search_for_something_else_is_refused(asked):
    state = DHP(small(), X, Budget(macs=0.5), steps=60).state()
    other = DHP(small(), X, **({"budget": Budget(macs=0.5), "steps": 60} | asked))
    with pytest.raises(UserError, match=r"0.5 of before does not fit .*(0.6 of before|61 steps)"):
        other.restore(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"done": -1}, r"the state of the search is damaged at \$.done: Expected int >= 0, there is -1"),
        ({"felt": [0.0]}, r"\$.felt: Expected 60 values, there are 1. Restore a copy of the checkpoint"),
        ({"stays": ["1"] * 60}, r"\$.stays\[0\]: Expected float, got str, there is '1'"),
        ({"kept": {"0": [0.5]}}, r"\$.kept\['0'\]\[0\]: Expected int, got float"),
        ({"records": [{"step": 0}]}, r"\$.records\[0\]: Object missing required field ratio"),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_changes(change, words):
    search = DHP(small(), X, Budget(macs=0.5), steps=60)
    before = search.state()
    with pytest.raises(FileError, match=words):
        search.restore(json.loads(json.dumps(before)) | change)
    assert search.state() == before


def test_a_learning_rate_that_is_always_zero_is_refused():
    with pytest.raises(UserError, match="learning rate has been 0"):
        searched(Budget(macs=0.5), steps=20, optimizer=lambda groups: sgd(groups, lr=0.0))
    search = DHP(small(), X, Budget(macs=0.5), steps=20)
    with pytest.raises(UserError, match="no latent has moved"):
        search.finish()


def test_a_learning_rate_that_is_zero_now_and_then_is_fine():
    def each(search, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if search.done % 3 == 0 else 0.05

    search = searched(Budget(macs=0.5), Config(round_to=1), each=each)
    assert all(np.isfinite(record["strength"]) for record in search.records)
    search.finish()
    assert_met(search)


@pytest.mark.parametrize("compact", [True, False])
def test_nan_after_the_decision_is_said_at_the_end(compact):
    search = searched(Budget(macs=0.5), Config(round_to=1, compact=compact))
    assert search.keep is not None
    with torch.no_grad():
        search.model.head.bias[0] = float("nan")
    with pytest.raises(TrainingError, match="a weight is NaN or infinite after 60 steps"):
        search.finish()


def test_nan_before_the_first_check_is_said_at_an_early_end():
    search = DHP(small(), X, Budget(macs=0.5), steps=2000)
    optimizer = sgd(search.groups(weight_decay=0.0))
    with torch.no_grad():
        search.latents.values[3] = float("nan")
    step_alone(search, optimizer)
    with pytest.raises(TrainingError, match="a latent is NaN or infinite after 1 steps"):
        search.finish()


def test_a_step_that_a_scaler_skipped_for_its_gradients_leaves_no_trace_in_the_sensitivities():
    """fp16 training starts with a few infinite gradients; the scaler skips these steps of the optimiser."""

    def train(skipped):
        search = DHP(small(), X, Budget(macs=0.5), steps=60, config=Config(round_to=1))
        optimizer = sgd(search.groups(weight_decay=5e-4))
        for number, (x, y) in enumerate(batches(60)):
            optimizer.zero_grad()
            F.cross_entropy(search.model(x), y).backward()
            if number in skipped:
                search.latents.values.grad[::2] = float("inf")
            else:
                optimizer.step()
            search.step(optimizer)
        return search

    search = train({0, 7})
    assert search.sensitivity.isfinite().all() and min(record["ratio"] for record in search.records) > 0.4
    search.finish()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pressure", ["least", "all"])
def test_the_model_may_be_moved_to_another_type_after_the_latents_are_on_it(dtype, pressure):
    model = small()
    search = DHP(model, X, Budget(macs=0.5), steps=10, config=Config(round_to=1, pressure=pressure))
    model.to(dtype)
    optimizer = sgd(search.groups(weight_decay=5e-4), lr=1e-3)
    for x, y in batches(10):
        optimizer.zero_grad()
        F.cross_entropy(model(x.to(dtype)), y).backward()
        optimizer.step()
        search.step(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ten steps are few
        found = search.finish()
    assert found(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("steps", [0, -3, 2.5])
def test_steps_that_cannot_be_are_refused_and_the_model_left_alone(steps):
    model = small()
    with pytest.raises(UserError, match="steps should be a whole number from 1"):
        DHP(model, X, Budget(macs=0.5), steps=steps)
    assert untouched(model)


@pytest.mark.parametrize(
    "config",
    [
        Config(latents="normal"),
        Config(strength=0.1, pressure="least"),
        Config(mode="paper", pressure="least"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_base_is_trained(config):
    """A run checks the options before it trains anything."""
    graph = prunus.trace(small(), X)
    with pytest.raises(UserError, match=r"latents=normal|pressure=least"):
        config.check(graph, Budget(macs=0.5))


@pytest.mark.parametrize("steps", [20, 600])
def test_nan_is_said_at_the_next_check(steps):
    search = DHP(small(), X, Budget(macs=0.5), steps=steps)
    optimizer = sgd(search.groups(weight_decay=0.0))
    with torch.no_grad():
        search.latents.values[3] = float("nan")
    search.latents.values.grad = torch.zeros_like(search.latents.values)
    with pytest.raises(
        TrainingError, match=r"a latent is NaN or infinite after [1-3] steps; lower the learning rate"
    ):
        for _ in range(3):
            search.step(optimizer)


def test_where_no_axis_can_go_exactly_the_reasons_are_named():
    model, example = build("attention")
    with pytest.raises(UserError, match=r"can prune no axis .*norm.*statistics.*mixed=True"):
        DHP(model, example, Budget(macs=0.9), steps=10, config=Config(freeze=("qkv", "up")))
    assert untouched(model)
    with pytest.raises(UserError, match=r"can prune no axis .*frozen"):
        DHP(small(), X, Budget(macs=0.9), steps=10, config=Config(freeze=("*",)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"factors": 4}, "mode=exact there is no use for factors"),
        ({"mode": "paper", "ramp": 0.5, "mixed": True}, "mode=paper there is no use for ramp, mixed"),
        ({"strength": 1e-3, "ramp": 0.5}, "a strength there is no use for ramp"),
    ],
)
def test_options_without_effect_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        Config(**given).resolved()


def test_axes_left_whole_are_named_where_they_keep_a_budget_from_being_met():
    model, example = build("attention")
    with pytest.raises(
        BudgetError, match=r"leaves \w+ whole because .* takes statistics over it; mixed=True"
    ):
        DHP(model, example, Budget(macs=0.05), steps=50)


@pytest.mark.parametrize("mixed", [False, True])
def test_of_a_transformer_heads_and_hidden_units_go_and_the_stream_if_asked(mixed):
    model, example = build("attention")
    search = DHP(model, example, Budget(macs=0.6), steps=50, config=Config(mixed=mixed, round_to=1))
    assert ("embed" in search.latents.places) == mixed
    optimizer = adamw(search.groups(weight_decay=0.01))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        x = torch.randn(16, 6, 7, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x.sum((1, 2)) > 0).long()).backward()
        optimizer.step()
        search.step(optimizer)
    found = search.finish()
    assert figure(search, search.keep) <= 0.6 * figure(search)
    assert (found.embed.out_features < 24) <= mixed
    assert found(example).shape == (2, 5)


def test_budgets_that_cannot_be_met_are_refused_and_the_model_left_alone():
    for budget, config, error in (
        (Budget(macs=0.001), None, BudgetError),
        (Budget(macs=0.5), Config(floor=0.95), BudgetError),
        (Budget(macs=10**12), None, BudgetError),
        (Budget(latency_ms=0.5), None, UserError),
    ):
        model = small()
        with pytest.raises(error):
            DHP(model, X, budget, steps=10, config=config)
        assert untouched(model)


def test_where_nothing_reads_what_is_written_there_is_nothing_to_remove():
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU())
    with pytest.raises(TraceError, match="nothing in this Sequential may shrink"):
        DHP(model, torch.zeros(1, 7), Budget(macs=0.5), steps=10)
    assert untouched(model)


def test_a_second_search_on_the_same_network_is_refused():
    model = small()
    DHP(model, X, Budget(macs=0.5), steps=10)
    with pytest.raises(UserError, match="has gates already"):
        DHP(model, X, Budget(macs=0.5), steps=10)


def test_weights_behind_a_norm_are_searched_without_cutting():
    model = small()
    weight_norm(model.a)
    search = searched(Budget(macs=0.5), Config(round_to=1), model=model)
    assert not search.compacted.kept
    found = search.finish()
    assert found.a.weight.shape[0] == len(search.keep["a"]) < 24
    assert_met(search)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ramp": 0.0}, r"ramp should be a number from 0\.05 to 1, but is 0\.0; the nearest is 0\.05"),
        ({"ramp": 1.5}, "the nearest is 1"),
        ({"epochs": 0}, "epochs should be a whole number from 1"),
        ({"factors": 0}, "factors should be a whole number from 1"),
        ({"strength": 0.0}, "strength should be a finite number above 0"),
        ({"strength": float("inf")}, "give None to follow the plan"),
        ({"mode": "papr"}, "mode"),
        ({"start": "pretrained"}, "start"),
        ({"latents": "zeros"}, "latents"),
        ({"latents": "normal", "start": "given"}, "numbers near zero"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        Config(**wrong).resolved()
