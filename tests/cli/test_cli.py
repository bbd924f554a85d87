"""The command line: help with examples, exit statuses, one clear message for every error."""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from prunus import cli, methods
from prunus.cli import commands, describe
from prunus.errors import UNSAFE
from prunus.files import read_json, write_json
from tests.lib.models import imported_beside_torchvision
from tests.lib.photos import write_photos

SPARSE = ["run", "--model", "zoo:digits_resnet", "--data", "digits", "--out", "OUT", "--method", "lookahead"]


def said(capsys, *arguments: str, status: int = 0) -> str:
    assert cli.main(arguments) == status
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_every_command_shows_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"prunus {command} " in capsys.readouterr().out.partition("Examples:")[2]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in commands.COMMANDS)


def test_methods_are_the_folder(capsys):
    text = said(capsys, "methods")
    assert {"taylor", "magnitude", "random"} <= set(methods.names())
    assert all(name in text for name in methods.names())


@pytest.mark.parametrize("name", methods.names())
def test_every_method_shows_its_paper_and_options(capsys, name):
    text = said(capsys, "methods", name)
    assert "arXiv" in text
    assert all(option in text for option, _ in methods.option_types(methods.find(name).config_class))


def test_methods_say_which_limit_they_take(capsys):
    lines = said(capsys, "methods").splitlines()
    rows = {name: next(line for line in lines if f" {name} " in line) for name in ("taylor", "lookahead")}
    assert "--budget" in rows["taylor"] and "--sparsity" in rows["lookahead"]


def test_inspect_shows_axes_and_reasons(capsys):
    text = said(capsys, "inspect", "--model", "zoo:digits_resnet")
    assert "fixed dimensions and why" in text and "halving every axis removes" in text
    assert "conv1" in said(capsys, "inspect", "--model", "zoo:digits_resnet", "--explain", "conv1")


def test_inspect_says_of_which_kind_axes_are_and_what_stays_whole(capsys):
    asked = ["inspect", "--model", "zoo:vit_tiny", "--json", "--only", "heads", "mlp", "--freeze", "blocks.0"]
    axes = json.loads(said(capsys, *asked))["axes"]
    assert [axes[name]["kind"] for name in ("patches", "blocks.1.attention.qkv", "blocks.1.up")] == [
        "width",
        "heads",
        "mlp",
    ]
    whole = {name: each["least_because"] for name, each in axes.items() if each["least"] == each["units"]}
    assert whole == {
        "patches": "only heads, mlp may shrink",
        "blocks.0.attention.qkv": "frozen by 'blocks.0'",
        "blocks.0.up": "frozen by 'blocks.0'",
    }
    text = said(capsys, *(part for part in asked if part != "--json"))
    assert "kind" in text and "stays whole" in text
    assert "stays whole" not in said(capsys, "inspect", "--model", "zoo:vit_tiny")


def test_inspect_of_data_and_weights_shows_curves(capsys, digits_run):
    weights = str(digits_run / "base.safetensors")
    text = said(capsys, "inspect", "--model", "zoo:digits_resnet", "--data", "digits", "--weights", weights)
    rows = re.findall(
        r"(\S+) +\S +(\d+) +\S +([\d.]+)% +\S +([\d.]+)% +\S +([\d.]+)%", text.partition("sensitivity")[2]
    )
    assert [row[:2] for row in rows][:2] == [("conv1", "3"), ("layer1.0.conv1", "1")] and len(rows) == 6
    assert all(0 < float(most) < float(half) < float(least) < 100 for _, _, most, half, least in rows)
    untrained = said(capsys, "inspect", "--model", "zoo:digits_resnet", "--data", "digits")
    assert untrained.partition("sensitivity")[2] != text.partition("sensitivity")[2]
    asked = ["inspect", "--model", "zoo:digits_resnet", "--data", "digits", "--weights", weights, "--json"]
    assert cli.main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["blocks"] == {"layer1.0:depth": "layer1.0"}
    shares = told["unexplained"]["conv1"]
    assert [f"{100 * shares[share]:.1f}" for share in ("0.75", "0.5", "0.25")] == list(rows[0][2:])


def test_inspect_reads_the_config_of_a_language_model_alone(capsys, tmp_path):
    transformers = imported_beside_torchvision("transformers")
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 2, "vocab_size": 128256}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 8}
    config = transformers.LlamaConfig(**sizes, **heads, architectures=["LlamaForCausalLM"])
    config.save_pretrained(tmp_path)
    asked = ["inspect", "--model", f"hf:{tmp_path}"]
    told = json.loads(said(capsys, *asked, "--only", "groups", "--json"))  # 10 billion parameters
    free = {name for name, axis in told["axes"].items() if axis["least"] < axis["units"]}
    assert {told["axes"][name]["kind"] for name in free} == {"groups"} and len(free) == 2
    assert told["costs"]["params"] > 1e10 and told["blocks"]
    assert "--data is for models of images" in said(capsys, *asked, "--data", "digits", status=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["methods", "tailor"], "Did you mean taylor"),
        (["inspect", "--model", "zoo:resnet21"], "Did you mean resnet32 or resnet20"),
        (["compare"], "name the run folders"),
        (["compare", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["export", "nowhere"], "nowhere holds no run"),
        (["bench", "nowhere"], "nowhere holds no run"),
        ([*SPARSE, "--sparsity", "0"], "between 0 and 1"),
        ([*SPARSE, "--sparsity", "1"], "between 0 and 1"),
        ([*SPARSE, "--sparsity", "80"], "0.8 for 80 %"),
        ([*SPARSE, "--budget", "macs=0.5"], "--sparsity 0.8"),
        ([*SPARSE, "--budget", "macs=0.5", "--sparsity", "0.8"], "not both"),
        ([*SPARSE, "--method", "taylor", "--sparsity", "0.8"], "--budget macs=0.5"),
        (["inspect", "--model", "zoo:resnet20", "--json", "--explain", "conv1"], "give --json"),
        (
            ["inspect", "--model", "zoo:resnet20", "--only", "width", "--explain", "conv1"],
            "give --freeze and --only",
        ),
        (
            [*SPARSE, "--method", "random", "--only", "heads"],
            "only='heads': this network has no axes of that kind",
        ),
        ([*SPARSE, "--round-to", "8"], "unknown option of method lookahead 'round_to'"),
        (["run", "--model", "zoo:resnet20", "--data", "digitz", "--out", "OUT"], "digits"),
        (
            ["run", "--model", "zoo:resnet20", "--data", "digits", "--out", "OUT", "--budget", "flops=1"],
            "macs",
        ),
        (
            ["run", "--model", "zoo:resnet20", "--data", "digits", "--out", "OUT", "--budget", "macs=-1"],
            "macs",
        ),
    ],
)
def test_the_users_mistakes_end_in_one_message_and_status_2(capsys, tmp_path, arguments, words):
    arguments = [str(tmp_path / "run") if argument == "OUT" else argument for argument in arguments]
    text = said(capsys, *arguments, status=2)
    assert words in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--seed -1", "seed should be a whole number from 0 to 4294967295, but is -1; the nearest is 0"),
        ("--lr inf", "lr should be a number from 0 to 100, but is inf; the nearest is 100"),
        ("--base-lr -0.1", "base_lr should be a number from 0 to 100, but is -0.1; the nearest is 0"),
        ("--image-size 0", "image_size should be a whole number from 1 to 16384, but is 0; the nearest is 1"),
        ("--round-to 0", "round_to should be a whole number from 1, but is 0; the nearest is 1"),
        ("--batch-size 0", "batch_size should be a whole number from 1, but is 0; the nearest is 1"),
        ("--epochs -3", "epochs should be a finite number from 0, but is -3.0; the nearest is 0"),
        ("--minutes 0", "minutes should be a finite number above 0, but is 0.0"),
        ("--recipe recover.lrr=1", "unknown field of a recipe 'lrr'. Did you mean lr"),
        ("--recipe recver.lr=1", "unknown part of a run 'recver'. Did you mean recover"),
        ("--recipe recover.lr=0.1 --lr 0.2", "lr=0.2 and recover.lr=0.1 say two things about the same"),
        ("--minutes 3 --epochs 2", "minutes=3 and 2 epochs of recovery say two things about the same"),
        ("--threads 0", "threads should be a whole number from 1, but is 0; the nearest is 1"),
        (
            "--distill-weight 1.5",
            "distill_weight should be a number from 0 to 1, but is 1.5; the nearest is 1",
        ),
        ("--set batch_size=0", "batch_size should be a whole number from 1, but is 0; the nearest is 1"),
        ("--set batches=-1", "batches should be a whole number from 1, but is -1; the nearest is 1"),
        ("--budget macs=1.5", "the nearest is 2"),
        ("--budget macs=0", "expected a fraction such as 0.5, or a number above 1"),
        ("--budget macs=nan", "expected something like macs=0.5"),
        ("--budget params=many", "expected something like params=0.5"),
        ("--budget watts=0.5", "unknown cost in a budget 'watts'"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_is_out_of_range_is_refused_before_anything_is_read_or_written(
    capsys, tmp_path, arguments, words, more
):
    named = ["--model", "zoo:digits_resnet", "--data", "parquet:absent", "--out", str(tmp_path / "run")]
    text = said(capsys, "run", *named, *arguments.split(), *more, status=2)
    assert words in text and "Traceback" not in text and "absent" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("demo --seed -1", "the nearest is 0"),
        ("inspect --model zoo:resnet20 --classes 0", "classes should be a whole number from 1"),
        ("inspect --model zoo:resnet20 --input-shape 3 0 8", "input_shape should be a whole number from 1"),
        ("bench RUN --seconds 0", "seconds should be a number above 0"),
        ("bench RUN --seconds inf", "the nearest is 86400"),
    ],
)
def test_other_commands_refuse_what_is_out_of_range(capsys, digits_run, arguments, words):
    assert words in said(capsys, *arguments.replace("RUN", str(digits_run)).split(), status=2)


def test_unknown_arguments_end_in_status_2():
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--modle", "zoo:resnet20"])
    assert stop.value.code == 2


def test_our_own_faults_end_in_status_1_and_a_traceback_on_demand(capsys, monkeypatch):
    def broken() -> None:
        raise RuntimeError("boom")

    monkeypatch.setitem(commands.COMMANDS, "methods", broken)
    assert "Traceback" not in said(capsys, "methods", status=1)
    assert "Traceback" in said(capsys, "methods", "--debug", status=1)


def test_a_folder_in_use_is_refused_naming_resume(capsys, digits_run):
    arguments = ["run", "--model", "zoo:digits_resnet", "--data", "digits", "--out", str(digits_run)]
    assert "--resume" in said(capsys, *arguments, status=2)
    assert "other settings" in said(capsys, *arguments, "--seed", "7", "--resume", status=2)


def test_dry_run_shows_the_plan_and_writes_nothing(capsys, tmp_path):
    arguments = ["--model", "zoo:digits_resnet", "--data", "digits", "--method", "magnitude", "--dry-run"]
    assert "macs" in said(capsys, "run", *arguments, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["dhp", "metapruning"])
def test_a_dry_run_of_a_method_that_searches_says_what_to_do_instead(capsys, method):
    arguments = ["--model", "zoo:digits_resnet", "--data", "digits", "--out", "unused", "--method", method]
    assert cli.main(["run", *arguments, "--dry-run"]) == 2
    assert "nothing to show before" in capsys.readouterr().err
    assert not Path("unused").exists()


def test_dry_run_shows_the_survivors_of_each_layer(capsys, tmp_path):
    arguments = [str(tmp_path / "run") if argument == "OUT" else argument for argument in SPARSE]
    text = said(capsys, *arguments, "--dry-run", "--set", "pattern=2:4")
    assert "conv1.weight is left dense" in text and "layer3.0.conv2.weight" in text
    lines = said(capsys, *arguments, "--dry-run", "--sparsity", "0.9").splitlines()
    total = next(line for line in lines if line.startswith("all of these"))
    assert "10.00%" in total and not (tmp_path / "run").exists()


def test_layers_left_dense_are_named_with_the_result(capsys, digits_run):
    values = read_json(digits_run / "result.json")
    commands.show(values, digits_run)
    assert "Left dense" not in capsys.readouterr().out
    commands.show(values | {"left_dense": dict.fromkeys(["a", "b", "c", "d"], "too narrow")}, digits_run)
    assert "Left dense, because the pattern does not fit: a, b, c and 1 more." in capsys.readouterr().out


def test_report_and_compare_read_finished_runs(capsys, digits_run, tmp_path):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    (copy / "report.html").unlink()
    assert "Proved" in said(capsys, "report", str(copy))
    assert (copy / "report.html").exists()
    assert "taylor" in said(capsys, "compare", str(copy), str(digits_run))


def test_copies_of_one_run_are_recognised(capsys, digits_run, tmp_path):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    values = read_json(digits_run / "result.json")
    other = values | {"seed": 1, "settings": values["settings"] | {"seed": 1}}
    write_json(tmp_path / "other" / "result.json", other)
    folders = list(map(str, (digits_run, copy, tmp_path / "other")))
    text = " ".join(said(capsys, "compare", *folders).split())
    assert (
        f"{copy} is a copy of {digits_run}: stages base, prune, shrink, repair, recover, evaluate ran once for both"
        in text
    )
    assert "on average over 2 seeds" in text and text.count("is a copy of") == 1
    apart = values | {"seconds": {stage: took + 1 for stage, took in values["seconds"].items()}}
    write_json(
        copy / "result.json", apart | {"seconds": apart["seconds"] | {"base": values["seconds"]["base"]}}
    )
    text = " ".join(said(capsys, "compare", *folders).split())
    assert f"{copy} is a copy of {digits_run}: stage base ran once for both" in text  # copied, then continued
    write_json(copy / "result.json", apart)
    text = " ".join(said(capsys, "compare", *folders).split())
    assert "is a copy of" not in text and "on average over 3 runs of 2 seeds" in text


HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]x[/nothing] :smile: \u202e\x9b"


def test_control_characters_and_markup_of_names_and_files_do_nothing(capsys, digits_run, tmp_path):
    """In a folder's name, in a result, and in an error about a file."""
    values = read_json(digits_run / "result.json")
    folder = tmp_path / HOSTILE.replace("/", "")
    shown = values["metric_shown"] | {"key": HOSTILE}
    parts = {part: values[part] | {HOSTILE: 0.5} for part in ("before", "pruned", "after")}
    parts["repaired"] = values["repaired"] | {"kept": "repaired", "test": {HOSTILE: 0.5}}
    write_json(folder / "result.json", values | parts | {"method": HOSTILE, "metric_shown": shown})
    for command in ("compare", "report"):
        out = said(capsys, command, str(folder))
        assert not UNSAFE.search(out)
        assert ":smile:" in out or command == "compare"  # the table folds long names
    assert "\\x1b]0;owned" in out and "[bold red]x[/nothing]" in out
    (folder / "result.json").write_text(json.dumps(values | {"seed": HOSTILE}))
    error = said(capsys, "report", str(folder), status=2)
    assert "is damaged at $.seed: Expected int, got str" in error and not UNSAFE.search(error)


def test_a_name_that_is_no_utf8_is_shown(capsys, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert "\\udcff holds no run" in said(capsys, "report", folder, status=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"before": {"macs": 0}}, "$.before.macs: Expected float >= 1e-300, there is 0"),
        ({"widths": {"conv1": [1, 0]}}, "$.widths['conv1'][1]: Expected int >= 1, there is 0"),
        ({"budget": {}}, "$.budget: Expected object of length >= 1"),
        ({"metric_shown": {"key": "psnr"}}, "before, should hold 'psnr', a finite number, but holds none"),
        ({"pruned": {"accuracy": "0.5"}}, "pruned, should hold 'accuracy', a finite number, but holds '0.5'"),
        ({"metric_shown": {"key": "accuracy", "digits": 10**9}}, "$.metric_shown.digits: Expected int <= 20"),
        ({"charts": [{"kind": "line"}]}, "$.charts[0].kind: Invalid value 'line'"),
        ({"format": 2}, "is of format 2, but this version of Prunus reads format 1"),
    ],
    ids=str,
)
def test_a_damaged_result_is_refused_with_its_place(capsys, digits_run, tmp_path, change, words):
    values = read_json(digits_run / "result.json")
    (tmp_path / "result.json").write_text(json.dumps(values | change))
    for command in ("report", "compare", "export", "bench"):
        assert words in said(capsys, command, str(tmp_path), status=2)


@pytest.mark.filterwarnings("ignore")  # from the exporters
def test_export_is_checked_against_the_model(capsys, digits_run, tmp_path):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    text = said(capsys, "export", str(copy))
    assert "model.pt2 written" in text and (copy / "model.pt2").exists()
    has_onnx = all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
    assert (copy / "model.onnx").exists() == has_onnx
    assert has_onnx or "prunus[onnx]" in text


def test_python_m_prunus_is_the_same_program():
    command = [sys.executable, "-m", "prunus", "methods", "tailor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Did you mean taylor" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_of_single_weights_ends_well(capsys, tmp_path):
    text = said(capsys, "demo", "--method", "lookahead", "--out", str(tmp_path / "demo"))
    result = read_json(tmp_path / "demo" / "result.json")
    assert "Proved" in text and "80 %" in text
    assert result["after"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert result["after"]["accuracy"] > 0.95


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_ends_well(capsys, tmp_path):
    text = said(capsys, "demo", "--out", str(tmp_path / "demo"))
    result = read_json(tmp_path / "demo" / "result.json")
    assert "Proved" in text
    assert result["after"]["macs"] <= 0.5 * result["before"]["macs"]
    assert result["after"]["accuracy"] > 0.95


def test_our_warnings_are_one_sentence_and_others_say_where_they_come_from(capsys, monkeypatch):
    def command() -> None:
        """Issue two warnings."""
        warnings.warn_explicit(
            "too few epochs", UserWarning, str(Path(commands.__file__).with_name("latents.py")), 7
        )
        warnings.warn_explicit("this is old", FutureWarning, "elsewhere.py", 7)

    monkeypatch.setitem(commands.COMMANDS, "warns", command)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        assert cli.main(["warns"]) == 0
    assert capsys.readouterr().err == "warning: too few epochs\n"
    assert [(str(each.message), each.filename) for each in others] == [("this is old", "elsewhere.py")]


@pytest.mark.parametrize("name", methods.names())
def test_every_option_of_a_method_is_explained(name):
    found = methods.find(name)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(describe.option_meanings(found.config_class))
    explained = {line.split()[0] for line in console.export_text().splitlines() if line[:1].isalpha()}
    assert not [option for option, _ in methods.option_types(found.config_class) if option not in explained]


@pytest.fixture(scope="module")
def photos_run(tmp_path_factory):
    """Photos of two classes, and a short finished run on them."""
    folder = tmp_path_factory.mktemp("photos")
    photos = write_photos(folder / "photos", {"[b]cat": 40, "dog": 40})
    arguments = ["--model", "zoo:digits_resnet", "--data", f"imagefolder:{photos}", "--method", "magnitude"]
    assert (
        cli.main(["run", *arguments, "--base-epochs", "1", "--epochs", "1", "--out", str(folder / "run")])
        == 0
    )
    return photos, folder / "run"


def test_predict_shows_a_table_of_files_classes_and_probabilities(capsys, photos_run, monkeypatch):
    photos, run = photos_run
    monkeypatch.chdir(photos)
    files = [f"dog/{index}.png" for index in range(3)]
    text = "".join(said(capsys, "predict", str(run), *files, "--top", "2").split())
    assert "class" in text and "probability" in text
    assert text.count("[b]cat") == text.count("%") / 2 == 3  # a class's name is no markup
    assert "dog/2.png" in text


def test_predict_prints_json_that_a_program_reads(capsys, photos_run):
    photos, run = photos_run
    assert cli.main(["predict", str(run), str(photos / "dog" / "0.png"), "--json", "--top", "5"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["file"].endswith("dog/0.png") and len(row["classes"]) == 2
    assert sum(each["probability"] for each in row["classes"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN"], "name the files"),
        (["RUN", "nowhere.png", "missing.png"], "missing.png"),
        (["RUN", "nowhere.png", "--top", "0"], "--top should be at least 1, not 0"),
        (["nowhere", "a.png"], "nowhere holds no run"),
    ],
)
def test_mistakes_with_predict_end_in_one_message(capsys, photos_run, arguments, words):
    arguments = [str(photos_run[1]) if argument == "RUN" else argument for argument in arguments]
    assert words in said(capsys, "predict", *arguments, status=2)


def test_compare_says_where_runs_had_other_data(capsys, photos_run, digits_run, tmp_path):
    run = photos_run[1]
    copy = shutil.copytree(run, tmp_path / "copy")
    assert "other data" not in said(capsys, "compare", str(run), str(copy))
    stored = read_json(copy / "data.json")
    del stored["items"]["dog/3.png"]
    write_json(copy / "data.json", stored)
    text = said(capsys, "compare", str(run), str(copy))
    assert "other data" in text and "1 image gone: dog/3.png" in text
    (copy / "data.json").unlink()
    assert "Stored nothing about their data" in said(capsys, "compare", str(run), str(copy))
    assert "classes gone: [b]cat, dog" in said(capsys, "compare", str(run), str(digits_run))


def test_a_runs_table_says_how_many_images_were_used(capsys, photos_run):
    assert "80 images found, 80 used" in " ".join(said(capsys, "report", str(photos_run[1])).split())


def test_skip_broken_leaves_out_what_cannot_be_read(capsys, tmp_path):
    photos = write_photos(tmp_path / "photos", {"cat": 20, "dog": 20})
    (photos / "cat" / "3.png").write_bytes(b"no image")
    arguments = ["run", "--model", "zoo:digits_resnet", "--data", f"imagefolder:{photos}"]
    arguments += ["--method", "magnitude", "--dry-run", "--out", str(tmp_path / "run")]
    assert "cat/3.png" in said(capsys, *arguments, status=2)
    assert "macs" in said(capsys, *arguments, "--skip-broken")


def test_inspect_takes_images_and_the_type_of_weights_from_the_config(capsys, tmp_path):
    """A network for images of 16 pixels was shown for 224, and weights of 16 bits as of 32."""
    transformers = imported_beside_torchvision("transformers")
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    images = transformers.ViTConfig(**heads, image_size=16, patch_size=4, num_labels=7)
    images.save_pretrained(tmp_path / "images")
    told = json.loads(said(capsys, "inspect", "--model", f"hf:{tmp_path / 'images'}", "--json"))
    wanted = transformers.ViTForImageClassification(images)
    assert told["costs"]["params"] == sum(each.numel() for each in wanted.parameters())
    texts = transformers.LlamaConfig(
        **heads, vocab_size=40, architectures=["LlamaForCausalLM"], dtype="bfloat16"
    )
    texts.save_pretrained(tmp_path / "texts")
    told = json.loads(said(capsys, "inspect", "--model", f"hf:{tmp_path / 'texts'}", "--json"))
    assert told["costs"]["weights_mb"] == pytest.approx(2 * told["costs"]["params"] / 2**20, rel=0.01)
