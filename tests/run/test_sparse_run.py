"""A run of single weights: zeros that are there, hold through every schedule, and survive a kill to the same bits."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

from prunus import zoo
from prunus.data import load_data
from prunus.errors import PruningError, UserError
from prunus.export import store
from prunus.files import read_json, read_tensors
from prunus.methods import Pruned
from prunus.methods.lookahead import config, method
from prunus.methods.lookahead.judge import Judge
from prunus.run import Settings, preview, prune
from prunus.selection import Budget, Sparsity
from prunus.tasks import Classification
from prunus.train import loop
from tests.lib.programs import figures, kill_when_there, program
from tests.lib.two_processes import launched

SHORT = {"method": "lookahead", "base_epochs": 2, "epochs": 1}
ARGUMENTS = ["run", "--model", "zoo:digits_resnet", "--data", "digits", "--method", "lookahead"]
ARGUMENTS += ["--base-epochs", "2", "--epochs", "1", "--sparsity", "0.9"]


def network() -> torch.nn.Module:
    return zoo.build("digits_resnet", classes=10, in_shape=(1, 8, 8))


def run_in(folder: Path, sparsity: float | None = 0.8, *, resume: bool = False, **settings: object) -> dict:
    wanted = None if sparsity is None else Sparsity(sparsity)
    settings = Settings(**SHORT | settings)
    result = prune(
        "zoo:digits_resnet", data="digits", budget=wanted, out=folder, settings=settings, resume=resume
    )
    return result.values


def log_of(folder: Path, event: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sparse"
    run_in(folder, base_epochs=3, epochs=4)
    return folder


def test_the_result_counts_the_zeros_that_are_in_the_file(sparse_run):
    result, tensors = read_json(sparse_run / "result.json"), read_tensors(sparse_run / "model.safetensors")
    weights = [n for n, tensor in network().named_parameters() if tensor.dim() > 1]
    there = sum(network().get_parameter(n).numel() for n in weights)
    left = sum(int(tensors[n].count_nonzero()) for n in weights)
    assert result["budget"] == {"sparsity": 0.8} and result["before"]["sparsity"] < 0.01
    assert left <= round(0.2 * there) and left > 0.199 * there
    assert result["after"]["sparsity"] == pytest.approx(1 - left / there, abs=1e-12)
    assert sum(kept for kept, _ in result["survivors"].values()) == left
    assert sum(total for _, total in result["survivors"].values()) == there
    assert result["pruned"]["sparsity"] >= 1 - (round(0.2 * there) + 0.5) / there


def test_exactly_so_many_weights_were_chosen(sparse_run):
    masks = read_tensors(sparse_run / "prune" / "masks.safetensors")
    there = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.count_nonzero()) for mask in masks.values()) == round(0.2 * there)


def test_what_is_proved_is_the_base_with_zeros(sparse_run):
    masks, base = (
        read_tensors(sparse_run / name) for name in ("prune/masks.safetensors", "base.safetensors")
    )
    pruned = store.load(sparse_run / "pruned", network()).state_dict()
    keep = store.load_keep(sparse_run)
    for name, tensor in base.items():
        if not keep:  # no unit is gone: shapes are the same
            assert torch.equal(pruned[name], tensor * masks[name] if name in masks else tensor)


def test_masks_lie_beside_the_model_and_hold_while_the_rest_is_trained(sparse_run):
    masks, small = store.load_masks(sparse_run), store.load(sparse_run, network())
    before = store.load(sparse_run / "pruned", network()).state_dict()
    assert set(masks) == {n for n, tensor in network().named_parameters() if tensor.dim() > 1}
    for name, mask in masks.items():
        weight = small.get_parameter(name)
        assert not weight[~mask].any()
        assert (weight[mask] != before[name][mask]).float().mean() > 0.9
    assert type(small) is type(network()) and not any("parametrizations" in n for n in small.state_dict())


def test_sizes_on_disk_are_in_order(sparse_run):
    after = read_json(sparse_run / "result.json")["after"]
    assert after["compressed_mb"] < after["packed_mb"] < 0.4 * after["dense_mb"]
    assert after["dense_mb"] == pytest.approx(after["file_mb"], rel=0.1)


def test_what_is_tested_is_what_was_saved(sparse_run):
    data, result = load_data("digits"), read_json(sparse_run / "result.json")
    small = store.load(sparse_run, network())
    assert Classification(small, data).evaluate(small, data.test)["accuracy"] == result["after"]["accuracy"]
    assert result["after"]["accuracy"] > 0.5
    assert result["verified"]["max_abs_error"] <= result["verified"]["tolerance"]


def test_a_finished_run_resumes_to_itself(sparse_run):
    before = figures(sparse_run)
    run_in(sparse_run, resume=True, base_epochs=3, epochs=4)
    assert figures(sparse_run) == before
    with pytest.raises(UserError, match=r"budget.sparsity was 0\.8, is now 0\.9"):
        run_in(sparse_run, 0.9, resume=True, base_epochs=3, epochs=4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_agree_about_the_masks(tmp_path):
    options = ["schedule=gradual", "epochs=2", "every=10"]
    words = [word for option in options for word in ("--set", option)]
    launched(["-m", "prunus", *ARGUMENTS, *words, "--out", str(tmp_path / "run")])
    masks, small = store.load_masks(tmp_path / "run"), store.load(tmp_path / "run", network())
    assert read_json(tmp_path / "run" / "result.json")["machine"]["processes"] == 2
    assert not any(small.get_parameter(name)[~mask].any() for name, mask in masks.items())
    assert sum(map(int, map(torch.Tensor.sum, masks.values()))) <= round(0.1 * 123_040)


KILLED_AT = {
    "iterative": ("prune/round_1/checkpoint.safetensors", "prune/round_2/checkpoint.safetensors"),
    "gradual": ("prune/gradual/checkpoint.safetensors", "recover/checkpoint.safetensors"),
}


@pytest.mark.timeout(1200)  # four programs one after the other
@pytest.mark.parametrize("schedule", KILLED_AT)
def test_killed_it_ends_in_the_same_bits(tmp_path, schedule):
    options = [f"schedule={schedule}", "rounds=3", "epochs=2", "every=13"]
    arguments = [*ARGUMENTS, *(word for option in options for word in ("--set", option))]
    program([*arguments, "--out", str(tmp_path / "whole")])
    killed = tmp_path / "killed"
    for number, moment in enumerate(KILLED_AT[schedule]):
        kill_when_there([*arguments, "--out", str(killed), *["--resume"][:number]], killed / moment)
        assert not (killed / "stages" / "recover.json").exists()
    program([*arguments, "--out", str(killed), "--resume"])
    assert figures(killed) == figures(tmp_path / "whole")
    for name in ("model.safetensors", "masks.safetensors", "keep.json", "prune/weights.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_gradual_tightens_along_a_cube_and_momentum_revives_nothing(tmp_path):
    options = ("schedule=gradual", "epochs=2", "every=10", "score=magnitude")
    values = run_in(tmp_path / "run", 0.9, options=options, epochs=0)
    steps = log_of(tmp_path / "run", "pruned")
    last = steps[-1]["step"]
    for row in steps:
        assert row["kept"] == pytest.approx(0.1 + 0.9 * (1 - row["step"] / last) ** 3, abs=1e-4)
    masks, weights = (
        read_tensors(tmp_path / "run" / "prune" / f"{name}.safetensors") for name in ("masks", "weights")
    )
    base = read_tensors(tmp_path / "run" / "base.safetensors")
    assert not any(weights[name][~mask].any() for name, mask in masks.items())
    assert any((weights[name] != base[name])[mask].any() for name, mask in masks.items())
    assert values["after"]["sparsity"] == pytest.approx(0.9, abs=1e-4)


def test_iterative_takes_the_same_share_in_every_round(tmp_path):
    options = ("schedule=iterative", "rounds=3", "epochs=1")
    run_in(tmp_path / "run", 0.875, options=options, epochs=0)
    rounds = [sum(row["survivors"].values()) for row in log_of(tmp_path / "run", "pruned")]
    there = sum(p.numel() for p in network().parameters() if p.dim() > 1)
    assert rounds == [round(there * share) for share in (0.5, 0.25, 0.125)]
    trained = {row["of"] for row in log_of(tmp_path / "run", "epoch") if row["stage"] == "prune"}
    assert trained == {"round_1", "round_2"}


def test_what_is_frozen_stays_and_does_not_count(tmp_path):
    values = run_in(tmp_path / "run", 0.7, options=("freeze=conv1,layer3*",), epochs=0)
    assert not any(name.startswith(("conv1", "layer3")) for name in values["survivors"])
    assert values["after"]["sparsity"] == pytest.approx(0.7, abs=1e-4)
    base, small = (read_tensors(tmp_path / "run" / f"{name}.safetensors") for name in ("base", "model"))
    assert torch.equal(base["conv1.weight"], small["conv1.weight"])


def test_two_of_four_is_in_the_file_and_what_it_does_not_fit_is_named(tmp_path):
    values = run_in(tmp_path / "run", None, options=("pattern=2:4",))
    assert values["budget"] == {"sparsity": 0.5}
    assert list(values["left_dense"]) == ["conv1.weight"]
    tensors = read_tensors(tmp_path / "run" / "model.safetensors")
    for name in values["survivors"]:
        groups = tensors[name].movedim(1, -1).reshape(-1, 4) if name not in values["left_dense"] else None
        assert groups is None or int((groups != 0).sum(1).max()) <= 2
    assert 0.49 < values["after"]["sparsity"] < 0.5  # the dense one counts
    assert values["after"]["params"] == values["before"]["params"]  # a unit less would move the others


def test_permuted_units_compute_the_same_and_are_pruned_two_of_four(tmp_path):
    values = run_in(tmp_path / "run", None, options=("pattern=2:4", "permute=True"), epochs=0)
    base, moved = network(), network()
    base.load_state_dict(read_tensors(tmp_path / "run" / "base.safetensors"))
    moved.load_state_dict(read_tensors(tmp_path / "run" / "prune" / "weights.safetensors"))
    assert not torch.equal(base.layer2[0].conv2.weight, moved.layer2[0].conv2.weight)
    x = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(base.eval()(x), moved.eval()(x), atol=1e-4)
    tensors = read_tensors(tmp_path / "run" / "model.safetensors")
    for name in values["survivors"].keys() - values["left_dense"].keys():
        assert int((tensors[name].movedim(1, -1).reshape(-1, 4) != 0).sum(1).max()) <= 2


@pytest.mark.parametrize("score", get_args(config.Score))
def test_every_score_leaves_exactly_so_many(score):
    settings = Settings(method="lookahead", options=(f"score={score}", "batches=2"))
    _, found = preview("zoo:digits_resnet", data="digits", budget=Sparsity(0.87654), settings=settings)
    there = sum(mask.numel() for mask in found.masks.values())
    assert sum(int(mask.sum()) for mask in found.masks.values()) == round((1 - 0.87654) * there)


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_layers_pruned_in_order_keep_as_many_but_not_the_same(order):
    def masks(order: str) -> dict[str, torch.Tensor]:
        settings = Settings(method="lookahead", options=(f"order={order}",))
        return preview("zoo:digits_resnet", data="digits", budget=Sparsity(0.95), settings=settings)[1].masks

    once, found = masks("once"), masks(order)
    assert {n: int(m.sum()) for n, m in once.items()} == {n: int(m.sum()) for n, m in found.items()}
    assert any(not torch.equal(once[name], found[name]) for name in once)


def test_blocks_stay_or_go_whole_through_a_gradual_schedule(tmp_path):
    options = ("pattern=4x4", "schedule=gradual", "epochs=1", "every=10")
    values = run_in(tmp_path / "run", 0.8, options=options)
    tensors = read_tensors(tmp_path / "run" / "model.safetensors")
    for name in values["survivors"].keys() - values["left_dense"].keys():
        rows = tensors[name].movedim(1, -1).flatten(1) != 0
        blocks = rows.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).sum((1, 3))
        assert set(blocks.unique().tolist()) <= {0, 16}
    assert values["after"]["sparsity"] == pytest.approx(0.8, abs=16 / 120_000)


def test_units_of_which_nothing_is_left_are_removed(tmp_path):
    values = run_in(tmp_path / "run", 0.995, options=("allocation=uniform", "score=random"), epochs=0)
    assert values["after"]["params"] < values["before"]["params"]
    assert any(kept < there for kept, there in values["widths"].values())
    assert values["after"]["sparsity"] >= 0.995 - 1e-4
    assert values["verified"]["max_abs_error"] <= values["verified"]["tolerance"]
    masks, small = store.load_masks(tmp_path / "run"), store.load(tmp_path / "run", network())
    assert all(small.get_parameter(name).shape == mask.shape for name, mask in masks.items())


def test_a_given_model_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = ("schedule=gradual", "epochs=1", "order=backward")
    settings = Settings(method="lookahead", epochs=1, options=options)
    result = prune(model, data="digits", budget=Sparsity(0.8), out=tmp_path / "run", settings=settings)
    assert result.values["history"]["base"] == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert set(model.state_dict()) == set(before)


@pytest.mark.parametrize("schedule", ["iterative", "gradual"])
def test_a_preview_trains_nothing(tmp_path, monkeypatch, schedule):
    monkeypatch.setattr(loop, "fit", lambda *args, **kwargs: pytest.fail("trained"))
    monkeypatch.chdir(tmp_path)
    settings = Settings(method="lookahead", options=(f"schedule={schedule}",))
    _, found = preview("zoo:digits_resnet", data="digits", settings=settings)
    kept, there = (sum(map(count, found.masks.values())) for count in (torch.Tensor.sum, torch.Tensor.numel))
    assert int(kept) == round(0.2 * there) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "asked", "words"),
    [
        ({}, Budget(macs=0.5), r"--sparsity 0\.8.*Methods that take a budget: .*taylor"),
        (
            {"method": "taylor"},
            Sparsity(0.8),
            r"--budget macs=0\.5.*Methods that take a sparsity: .*lookahead",
        ),
        ({"options": ("freeze=nowhere*",)}, Sparsity(0.8), "nowhere"),
        ({"options": ("freeze=*",)}, Sparsity(0.8), "freeze less"),
        ({"options": ("pattern=4:2",)}, Sparsity(0.8), "N:M"),
        ({"options": ("pattern=2:4",)}, Sparsity(0.8), r"give --sparsity 0\.5"),
        ({"options": ("pattern=2:4", "schedule=gradual")}, Sparsity(0.5), "needs schedule=one_shot"),
        ({"options": ("permute=True", "pattern=4x4")}, Sparsity(0.5), "permute=True goes with"),
        ({"options": ("order=backward", "score=magnitude")}, Sparsity(0.8), "leave order=once"),
        ({"options": ("score=lookbehind",)}, Sparsity(0.8), "unknown score .* Known: .*lookahead"),
        (
            {"options": ("schedule=iterative", "rounds=0")},
            Sparsity(0.8),
            "rounds should be a whole number from 1, but is 0; the nearest is 1",
        ),
        ({}, Sparsity(0.99999), "must stay"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_training(tmp_path, settings, asked, words):
    with pytest.raises(UserError, match=words):
        prune(
            "zoo:digits_resnet",
            data="digits",
            budget=asked,
            out=tmp_path / "run",
            settings=Settings(**SHORT | settings),
        )
    assert not (tmp_path / "run").exists()


def test_a_method_that_misses_the_sparsity_is_found_out(tmp_path, monkeypatch):
    def too_many(judge: Judge, sparsity: Sparsity) -> Pruned:
        return Pruned(masks=judge.choose_masks(judge.task.model, Sparsity(sparsity.value - 0.01)))

    monkeypatch.setitem(method.SCHEDULES, "one_shot", too_many)
    with pytest.raises(PruningError, match=r"not .* as sparsity 0\.8 asks for"):
        run_in(tmp_path / "run", base_epochs=0)


def test_a_damaged_mask_file_is_named(sparse_run, tmp_path):
    copy = shutil.copytree(sparse_run, tmp_path / "copy")
    for stage in ("recover", "evaluate"):
        (copy / "stages" / f"{stage}.json").unlink()
    file = copy / "pruned" / "masks.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"masks\.safetensors"):
        run_in(copy, resume=True, base_epochs=3, epochs=4)


def test_what_is_settled_for_the_run_reaches_the_methods_training():
    task = Classification(network(), load_data("digits"), {"batch_size": 32, "precision": "no"})
    recipe = task.recipe("tune")
    assert (recipe.batch_size, recipe.precision) == (32, "no")


def test_down_to_layers_of_one_unit(tmp_path):
    values = run_in(tmp_path, 0.9999, base_epochs=1, epochs=1)
    assert min(kept for kept, _ in values["widths"].values()) == 1
    assert values["verified"]["max_abs_error"] <= values["verified"]["tolerance"]
