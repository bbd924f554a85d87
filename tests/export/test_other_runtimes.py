"""Files for OpenVINO and ExecuTorch: near to the model, of any inputs, written whole or not at all."""

import importlib.util
import shutil

import pytest
import torch

import prunus
from prunus import cli, zoo
from prunus.errors import PruningError, PrunusError, UserError
from prunus.export import export_executorch, export_openvino, files, prepare_openvino
from prunus.inputs import call, random_batch
from prunus.zoo.language import encoder_tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations inside the exporters
OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
EXECUTORCH = pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="needs executorch")


def images():
    return zoo.build("digits_resnet").eval(), torch.randn(1, 1, 8, 8)


def texts():
    ids = torch.arange(1, 17)[None]
    return encoder_tiny(40, 16, 3).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pruned(make):
    """A smaller network with random weights, and an input of it."""
    torch.manual_seed(0)
    model, example = make()
    graph = prunus.trace(model, example)
    keep = prunus.select(graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=0.6))
    return prunus.shrink(model, graph, keep).eval(), example


def same(outputs, model, inputs):
    with torch.no_grad():
        return len(outputs) == 1 and torch.allclose(outputs[0], call(model, inputs), atol=1e-5)


@OPENVINO
@pytest.mark.parametrize(("make", "free"), [(images, (0,)), (texts, (0, 1))])
def test_openvino_answers_batches_as_the_model_does(make, free, tmp_path):
    small, example = pruned(make)
    line = export_openvino(tmp_path, small, example, free)
    assert line.startswith("model.xml written; largest difference from the model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    run = prepare_openvino(tmp_path / "model.xml")
    for number in (1, 5):
        batch = random_batch(example, number)
        assert same(run(batch), small, batch)


@EXECUTORCH
@pytest.mark.parametrize("make", [images, texts])
def test_executorch_answers_as_the_model_does(make, tmp_path):
    from executorch.runtime import Runtime

    small, example = pruned(make)
    line = export_executorch(tmp_path, small, example)
    assert line.startswith("model.pte written; largest difference") and "It takes inputs of (1, " in line
    method = Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
    inputs = list(example.values()) if isinstance(example, dict) else [example]
    assert same(method.execute(inputs), small, example)


@OPENVINO
def test_openvino_leaves_nothing_of_a_file_that_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RELATIVE_TOLERANCE", -1.0)
    with pytest.raises(PruningError, match=r"model\.xml differs from the model .* it was not written"):
        export_openvino(tmp_path, *pruned(images))
    assert not list(tmp_path.iterdir())


@EXECUTORCH
def test_executorch_leaves_nothing_of_a_file_that_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RELATIVE_TOLERANCE", -1.0)
    with pytest.raises(PruningError, match=r"model\.pte differs from the model .* it was not written"):
        export_executorch(tmp_path, *pruned(images))
    assert not list(tmp_path.iterdir())


@OPENVINO
def test_what_openvino_refuses_is_said(tmp_path, monkeypatch):
    import openvino

    def refuse(_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(openvino, "convert_model", refuse)
    with pytest.raises(
        PrunusError, match="OpenVINO cannot convert this model: RuntimeError: no such operator"
    ):
        export_openvino(tmp_path, *pruned(images))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("export", "file", "package"),
    [(export_openvino, "model.xml", "openvino"), (export_executorch, "model.pte", "executorch")],
)
def test_a_missing_package_is_named(export, file, package, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = rf"{file} cannot be made: {package} not installed; pip install 'prunus\[{package}\]'"
    with pytest.raises(UserError, match=words):
        export(tmp_path, torch.nn.Linear(2, 2), torch.zeros(1, 2))


def test_a_run_is_not_exported_in_part_where_a_package_is_missing(digits_run, tmp_path, monkeypatch, capsys):
    before = sorted(digits_run.iterdir())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["export", str(digits_run), "--openvino", "--executorch"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert (
        "nothing was written: openvino not installed; pip install 'prunus[openvino]'; executorch not" in text
    )
    assert sorted(digits_run.iterdir()) == before


@OPENVINO
@EXECUTORCH
def test_a_run_is_exported_to_both(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "run")
    assert cli.main(["export", str(run), "--openvino", "--executorch"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "model.xml written" in text and "model.pte written" in text
    assert all((run / name).exists() for name in ("model.xml", "model.bin", "model.pte", "model.pt2"))
