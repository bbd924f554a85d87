"""Models from a SPEC, weights from files that are checked before use, helpful errors."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus import zoo
from prunus.data import load_data
from prunus.errors import FileError, UserError
from prunus.files import write_tensors
from prunus.tasks import Classification
from prunus.zoo import load_model, load_weights

SHARED = Path(__file__).parents[3] / "shared"
COLOUR = {"classes": 7, "in_shape": (3, 32, 32)}


def make_net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))


def make_nothing():
    return 3


def test_zoo_and_callable():
    assert load_model("zoo:resnet20", **COLOUR)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert load_model(f"{__name__}:make_net", **COLOUR)[1].out_features == 7


def test_a_callable_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text(
        "from torch import nn\ndef net(in_shape, depth=2):\n    return nn.Conv2d(in_shape[0], 1, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_model("my_own_nets:net", **COLOUR).in_channels == 3
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("zoo:resnet65", "unknown zoo network 'resnet65'. Did you mean resnet56"),
        ("zo:resnet20", "unknown model source 'zo'. Did you mean zoo"),
        ("resnet20", "unknown model source 'resnet20'"),
        ("no.such:thing", "unknown model source 'no.such'"),
        ("math:sqr", "unknown callable in math 'sqr'. Did you mean sqrt"),
        (f"{__name__}:make_nothing", "should return an nn.Module, but returned a int"),
        ("hf:/no/such/folder", "config.json does not exist"),
    ],
)
def test_unknown_names_offer_the_nearest(spec, words):
    with pytest.raises(UserError, match=words):
        load_model(spec, **COLOUR)


def test_an_import_that_fails_inside_the_users_module_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text("import not_installed_here\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"broken_nets:net cannot be imported: .*not_installed_here"):
        load_model("broken_nets:net", **COLOUR)


@pytest.fixture
def libraries(monkeypatch):
    """Make torchvision and timm importable beside a CPU build of torch, where a helper for it is available."""
    if (SHARED / "tools" / "torchvision_cpu.py").exists():
        monkeypatch.syspath_prepend(str(SHARED / "tools"))
        pytest.importorskip("torchvision_cpu")
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    pytest.importorskip("timm")


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("spec", ["torchvision:shufflenet_v2_x0_5", "timm:resnet10t", "timm:test_vit"])
def test_libraries_models_fit_the_data(libraries, spec):
    model = load_model(spec, classes=7, in_shape=(3, 64, 64)).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spec", ["torchvision:resnt50", "timm:resnt50"])
def test_libraries_unknown_models_offer_the_nearest(libraries, spec):
    with pytest.raises(UserError, match=r"has no model 'resnt50'. Did you mean .*resnet50"):
        load_model(spec, **COLOUR)


@pytest.mark.filterwarnings("ignore")
def test_torchvision_says_it_takes_colour_only(libraries):
    with pytest.raises(UserError, match="takes images of 3 channels, these have 1; try timm:resnet18"):
        load_model("torchvision:resnet18", classes=7, in_shape=(1, 32, 32))


@pytest.mark.filterwarnings("ignore")
def test_transformers_config(libraries, tmp_path):  # transformers imports the libraries where installed
    transformers = pytest.importorskip("transformers")
    transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]).save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}", classes=7, in_shape=(1, 32, 32))
    assert model(torch.zeros(2, 1, 32, 32)).logits.shape == (2, 7)


def filled(seed):
    torch.manual_seed(seed)
    return zoo.build("digits_resnet")


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "parallel"])
def test_weights_come_back(kind, tmp_path):
    model, other = filled(0), filled(1)
    state = model.state_dict()
    file = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        write_tensors(file, {name: t for name, t in state.items() if "num_batches" not in name})
    else:
        parallel = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save(
            {"pt": state, "nested": {"state_dict": state, "epoch": 3}, "parallel": parallel}[kind], file
        )
    load_weights(other, file)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_weights_that_do_not_fit_are_refused_with_the_first_differences(tmp_path):
    model = filled(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = filled(1).state_dict()
    state["extra"] = torch.zeros(1)
    state["linear.weight"] = torch.zeros(3, 64)
    for name in ("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        del state[name]
    write_tensors(tmp_path / "w.safetensors", state)
    with pytest.raises(FileError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    words = str(caught.value)
    assert "missing in the file: bn1.weight, bn1.bias, bn1.running_mean and 1 more" in words
    assert "unknown to the model: extra" in words
    assert "linear.weight is (3, 64) in the file, (10, 64) in the model" in words
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_type_are_refused(tmp_path):
    state = filled(0).state_dict() | {"linear.weight": torch.zeros(10, 64, dtype=torch.int32)}
    write_tensors(tmp_path / "w.safetensors", state)
    with pytest.raises(
        FileError, match=r"of another type: linear.weight is torch.int32 in the file, torch.float32 in"
    ):
        load_weights(filled(0), tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_config_that_no_library_can_build_is_refused(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "depths": 3, "hidden_sizes": null}')
    with pytest.raises(
        UserError, match=r"config.json describes no image classifier that transformers can build"
    ):
        load_model(f"hf:{tmp_path}", classes=7, in_shape=(1, 32, 32))


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_nothing_is_executed_from_a_file(tmp_path):
    torch.save({"conv1.weight": Evil(tmp_path / "executed")}, tmp_path / "evil.pt")
    with pytest.raises(FileError, match="not a file of tensors only"):
        load_weights(filled(0), tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_missing_and_damaged_files_are_named(name, tmp_path):
    with pytest.raises(FileError, match=f"{name} does not exist"):
        load_weights(filled(0), tmp_path / name)
    (tmp_path / name).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(FileError, match=f"{name} is not a"):
        load_weights(filled(0), tmp_path / name)


def test_published_weights_classify_the_jpeg_images():
    """Another program measured 81.0 % on all 10,000; 1,000 suffice to notice wrong channels, norms or names."""
    weights, data = SHARED / "weights" / "cifar10_resnet20.safetensors", SHARED / "data" / "cifar10"
    if not (weights.exists() and data.exists()):
        pytest.skip("CIFAR-10 or its weights are not beside the project")
    cifar = load_data(f"parquet:{data}")
    model = load_model("zoo:resnet20", classes=10, in_shape=(3, 32, 32))
    load_weights(model, weights)
    task = Classification(model, cifar)
    accuracy = task.evaluate(model, cifar.test.take(range(1000)))["accuracy"]
    assert 0.78 < accuracy < 0.84
