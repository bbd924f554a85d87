"""The examples run as they stand, without a network."""

import runpy
from pathlib import Path

import pytest

from tests.lib.models import imported_beside_torchvision, torchvision_models

EXAMPLES = Path(__file__).parent.parent / "examples"
MAX_LINES = 90


def test_one_s_own_loop(capsys):
    runpy.run_path(str(EXAMPLES / "own_loop.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "multiply-adds left: 50%" in said
    before, cut, after = (float(word.rstrip("%")) for word in said.rpartition(":")[2].split())
    assert before > 90 and after > cut and after > 90


def test_a_method_of_one_s_own(capsys):
    runpy.run_path(str(EXAMPLES / "own_method.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "multiply-adds left: 50%" in said
    _, after = (float(word.rstrip("%")) for word in said.rpartition(":")[2].split())
    assert after > 60


def test_a_task_of_one_s_own(capsys):
    runpy.run_path(str(EXAMPLES / "own_task.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "multiply-adds left: 50%" in said
    before, after = (float(word) for word in said.rpartition(":")[2].replace("dB", "").split())
    assert after > 10.5 and after > before - 3  # the noisy images have 10.5 dB


def test_transformer(capsys):
    pytest.importorskip("transformers")
    torchvision_models()  # transformers imports torchvision where it is installed
    runpy.run_path(str(EXAMPLES / "transformer.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "heads of the first layer: 8 -> 4" in said and "its hidden units: 256 -> 128" in said


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_transformers_own_trainer(capsys):
    torchvision_models()  # transformers imports torchvision where it is installed
    pytest.importorskip("transformers")
    runpy.run_path(str(EXAMPLES / "trainer.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "after step 150: " in said and "multiply-adds left 50%" in said
    assert float(said.rpartition(":")[2].strip().rstrip("%")) > 60


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_lightning(capsys):
    imported_beside_torchvision("torchmetrics")  # which lightning imports
    pytest.importorskip("lightning", reason="needs lightning")
    runpy.run_path(str(EXAMPLES / "lightning_module.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "after step 60: " in said and "after step 100: " in said
    assert float(said.rpartition(":")[2].strip().rstrip("%")) > 90


# what is proved is the way that the example takes: which boxes are left depends on the image
@pytest.mark.filterwarnings("ignore:traced with real tensors:UserWarning")
def test_a_detector(capsys):
    torchvision_models()
    runpy.run_path(str(EXAMPLES / "detection.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "multiply-adds left: 50%" in said and "proved in: eval, train" in said
    before, after = (float(word) for word in said.rpartition(":")[2].split())
    assert before > 0.5 and after > before - 0.3


def test_examples_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert lengths and max(lengths.values()) <= MAX_LINES, lengths
