"""Exported programs of texts: batch and length stay free, in torch.export and in ONNX."""

import pytest
import torch

import prunus
from prunus.export import export_model, feed_of, missing_for_onnx, open_session
from prunus.inputs import call
from prunus.zoo.language import decoder_tiny, encoder_tiny
from tests.lib.models import torchvision_models

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations inside the exporters
IDS = torch.arange(1, 17)[None]
OTHERS = [(1, 16), (1, 5), (4, 11), (7, 2)]


def halved(model, example):
    graph = prunus.trace(model, example)
    keep = prunus.select(graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=0.6))
    return prunus.shrink(model, graph, keep).eval()


def decoder():
    torch.manual_seed(0)
    return decoder_tiny(40, 16), IDS


def encoder():
    torch.manual_seed(0)
    return encoder_tiny(40, 16, 3), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def llama():
    torchvision_models()  # transformers imports it
    transformers = pytest.importorskip("transformers", reason="the model is from transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=40, num_hidden_layers=2, use_cache=False, **sizes)
    return transformers.LlamaForCausalLM(config), {
        "input_ids": IDS,
        "attention_mask": torch.ones_like(IDS),
    }


def sized(example, batch, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(40, (batch, length), generator=generator)
    if isinstance(example, torch.Tensor):
        return ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def answer(output):
    return getattr(output, "logits", output)


@pytest.mark.parametrize("make", [decoder, encoder, llama])
def test_batch_and_length_stay_free(make, tmp_path):
    model, example = make()
    small = halved(model, example)
    lines = export_model(tmp_path, small, example, free_dims=(0, 1))
    assert "model.pt2 written" in lines[0], lines
    program = torch.export.load(tmp_path / "model.pt2").module()
    session = None
    if not missing_for_onnx():
        assert "model.onnx written" in lines[1], lines
        session = open_session((tmp_path / "model.onnx").read_bytes())
    for batch, length in OTHERS:
        inputs = sized(example, batch, length)
        with torch.no_grad():
            expected = answer(call(small, inputs))
            torch.testing.assert_close(answer(call(program, inputs)), expected, atol=1e-4, rtol=1e-3)
        if session is not None:
            got = torch.from_numpy(session.run(None, feed_of(session, inputs))[0])
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
