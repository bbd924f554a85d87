"""Models in 8 bits, after pruning: of any inputs, near to the model, refused where they are not."""

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus import zoo
from prunus.errors import PruningError, UserError
from prunus.export import export_int8, feed_of, missing_for_onnx, open_session, quantised
from prunus.zoo.language import encoder_tiny

onnx = pytest.importorskip("onnx")
numpy_helper = pytest.importorskip("onnx.numpy_helper")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # deprecations inside the exporters
    pytest.mark.skipif(bool(missing_for_onnx()), reason="needs onnx and onnxruntime"),
]


def images():
    torch.manual_seed(0)
    return zoo.build("digits_resnet").eval(), torch.randn(1, 1, 8, 8), [torch.randn(8, 1, 8, 8)] * 2


def texts():
    torch.manual_seed(0)
    ids = torch.arange(1, 17)[None]
    batch = {"input_ids": torch.randint(40, (6, 12)), "attention_mask": torch.ones(6, 12, dtype=torch.long)}
    return encoder_tiny(40, 16, 3).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [batch]


@pytest.mark.parametrize(("make", "free"), [(images, (0,)), (texts, (0, 1))])
def test_a_pruned_model_of_any_inputs_is_quantised(make, free, tmp_path):
    model, example, batches = make()
    graph = prunus.trace(model, example)
    keep = prunus.select(graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=0.6))
    small = prunus.shrink(model, graph, keep).eval()
    line = export_int8(tmp_path, small, example, batches, free)
    assert "model.int8.onnx written" in line
    data = (tmp_path / "model.int8.onnx").read_bytes()
    assert b"QuantizeLinear" in data and b"DequantizeLinear" in data
    session = open_session(data)
    [got] = session.run(None, feed_of(session, batches[0]))
    with torch.no_grad():
        expected = small(**batches[0]) if isinstance(batches[0], dict) else small(batches[0])
    off = (torch.from_numpy(got) - expected).norm() / expected.norm()
    assert 0 < off < 0.3  # in 8 bits, and near, although its weights are random


def test_sums_of_products_do_not_saturate(tmp_path):
    """All weights at the end of their range: two products of 8 bits would not fit into the 16 that AVX2 adds in."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    ).eval()
    with torch.no_grad():
        for weight in (each.weight for each in model if isinstance(each, nn.Linear)):
            weight.copy_(0.05 * torch.randn_like(weight).sign())
    x = torch.rand(256, 256)
    export_int8(tmp_path, model, x[:1], x.split(64))
    session = open_session((tmp_path / "model.int8.onnx").read_bytes())
    [got] = session.run(None, feed_of(session, x))
    with torch.no_grad():
        expected = model(x)
    assert (torch.from_numpy(got) - expected).norm() < 0.05 * expected.norm()
    weights = [
        numpy_helper.to_array(each)
        for each in onnx.load(tmp_path / "model.int8.onnx").graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2
    ]
    assert len(weights) == 3 and all(np.abs(each.astype(int)).max() <= 64 for each in weights)


def test_a_file_that_is_too_far_from_the_model_is_not_written(tmp_path, monkeypatch):
    model, example, batches = images()
    monkeypatch.setattr(quantised, "LARGEST", 1e-6)
    with pytest.raises(PruningError, match=r"differs from the model by .* it was not written"):
        export_int8(tmp_path, model, example, batches)
    assert not list(tmp_path.iterdir())


def test_no_batch_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one batch to measure ranges on"):
        export_int8(tmp_path, nn.Linear(2, 2), torch.zeros(1, 2), [])
