"""Networks that read text: their sizes, what they see, and how they are built."""

import pytest
import torch

import prunus
from prunus import zoo
from prunus.errors import FileError, UserError
from prunus.zoo import load_model
from prunus.zoo.language import Encoder
from tests.lib.models import imported_beside_torchvision
from tests.lib.texts import decoder, encoder

TEXT = {"vocabulary": 258, "length": 256}


def made_of_text(vocabulary, length, classes):
    return torch.nn.Linear(vocabulary + length, classes)


@pytest.mark.parametrize(
    ("name", "classes", "params"), [("decoder_tiny", None, 892_418), ("encoder_tiny", 4, 133_252)]
)
def test_sizes_are_as_stated(name, classes, params):
    model = load_model(f"zoo:{name}", classes=classes, **TEXT)
    assert sum(p.numel() for p in model.parameters()) == params
    assert f"{params:,}" in zoo.language.__doc__.replace("\n", " ")


def test_a_decoder_sees_no_token_that_comes_later():
    model = decoder().eval()
    one = torch.randint(258, (1, 12), generator=torch.Generator().manual_seed(0))
    other = one.clone()
    other[0, 7:] = (other[0, 7:] + 1) % 258
    with torch.no_grad():
        ours, theirs = model(one), model(other)
    assert torch.equal(ours[:, :7], theirs[:, :7]) and not torch.equal(ours[:, 7], theirs[:, 7])


def test_an_encoder_sees_no_padding():
    model = encoder().eval()
    text = torch.randint(258, (1, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(text)
    padded, longer = torch.cat([text, text], 1), torch.cat([mask, 0 * mask], 1)
    with torch.no_grad():
        torch.testing.assert_close(model(text, mask), model(padded, longer))
        assert not torch.allclose(model(text, mask), model(padded, torch.ones_like(padded)), atol=1e-4)


@pytest.mark.parametrize("model", [decoder(), encoder()], ids=["decoder", "encoder"])
def test_every_width_can_be_halved_with_proof(model):
    example = {"input_ids": torch.arange(20)[None]}
    if isinstance(model, Encoder):
        example["attention_mask"] = (torch.arange(20) < 15).long()[None]
    graph = prunus.trace(model.eval(), example)
    keep = {axis.name: range(axis.size // 2) for axis in graph.axes.values()}
    small = prunus.shrink(model, graph, keep)
    assert small.blocks[0].attention.heads == 2 and small.linear.in_features == 8


def test_a_callable_of_ones_own_gets_the_sizes():
    assert load_model(f"{__name__}:made_of_text", classes=3, **TEXT).in_features == 258 + 256


def made_of_images(in_shape, length=3):
    return torch.nn.Linear(in_shape[0], length)


def test_a_callable_for_images_keeps_its_own_length():
    assert load_model(f"{__name__}:made_of_images", in_shape=(2, 8, 8)).out_features == 3


@pytest.mark.parametrize(
    ("spec", "classes", "message"),
    [
        ("zoo:decoder_tin", None, "unknown zoo network from tokens to the next ones 'decoder_tin'.*decoder_tiny"),
        ("zoo:decoder_tiny", 4, "unknown zoo network from texts to classes 'decoder_tiny'.*encoder_tiny"),
        ("timm:resnet18", 4, "timm:resnet18 reads images, but the data are text; give zoo:NAME, hf:DIR"),
        ("hf:nowhere", 4, "nowhere/config.json does not exist"),
    ],
)  # fmt: skip
def test_a_model_that_reads_no_text_is_refused(spec, classes, message):
    with pytest.raises(UserError, match=message):
        load_model(spec, classes=classes, **TEXT)


def test_a_network_of_text_is_refused_for_images():
    with pytest.raises(UserError, match="zoo:encoder_tiny reads text, not images; take it with --task text"):
        zoo.build("encoder_tiny")


@pytest.fixture
def transformers():
    found = imported_beside_torchvision("transformers")
    pytest.importorskip(
        "transformers.models.llama.modeling_llama",
        reason="transformers cannot load its models here (a torchvision of another build of torch, for example)",
        exc_type=(ImportError, RuntimeError),
    )
    return found


def saved(transformers, folder, **more):
    """A small GPT-2 in a folder, with its weights."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24, "eos_token_id": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | more)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_folder_of_transformers_gives_the_model_and_its_weights(transformers, tmp_path):
    model, tokens = saved(transformers, tmp_path), torch.arange(10)[None]
    found = load_model(f"hf:{tmp_path}", vocabulary=30, length=24).eval()
    with torch.no_grad():
        assert torch.equal(found(tokens).logits, model(tokens).logits)
    assert found.config.pad_token_id == 2  # the end, because there is none
    classifier = load_model(f"hf:{tmp_path}", vocabulary=30, length=24, classes=5).eval()
    assert torch.equal(classifier.transformer.wte.weight, model.transformer.wte.weight)
    assert classifier(tokens.expand(2, -1)).logits.shape == (2, 5)
    (tmp_path / "model.safetensors").unlink()
    torch.manual_seed(3)
    fresh = load_model(f"hf:{tmp_path}", vocabulary=30, length=24)
    assert not torch.equal(fresh.transformer.wte.weight, model.transformer.wte.weight)


@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_model_are_refused(transformers, tmp_path):
    saved(transformers, tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"n_layer": 1', '"n_layer": 2'))
    with pytest.raises(
        FileError, match=r"lack transformer\.h\.1\..* and \d+ more of the model in its config"
    ):
        load_model(f"hf:{tmp_path}", vocabulary=30, length=24)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(FileError, match=r"the weights in .* cannot be read"):
        load_model(f"hf:{tmp_path}", vocabulary=30, length=24)


def test_special_tokens_are_the_config_s(tmp_path):
    assert zoo.special_token(tmp_path, "pad") is None
    for written, pad, end in [
        ('{"pad_token_id": 0, "eos_token_id": 2}', 0, 2), ('{"eos_token_id": [5, 6]}', 5, 5), ("{}", None, None),
    ]:  # fmt: skip
        (tmp_path / "config.json").write_text(written)
        assert (zoo.special_token(tmp_path, "pad"), zoo.special_token(tmp_path, "eos")) == (pad, end)
    (tmp_path / "config.json").write_text('{"eos_token_id": "2"}')
    with pytest.raises(FileError, match="should hold a number as eos_token_id, but holds '2'"):
        zoo.special_token(tmp_path, "pad")
