"""Export: models as files, and as programs outside Prunus.

Its files, in the order in which to read them:

    configured     whether a model's config makes it
    keep_file      the form of keep.json
    store          keep.json and model.safetensors: save, load
    tensor_stream  safetensors files, one tensor at a time
    stored         how a checkpoint stores the tensors of a model
    checkpoints    shards cut on disk, without the model
    programs       converting to torch.export and ONNX, running in torch and onnxruntime
    files          model.pt2 and model.onnx, checked against the model
    quantised      model.int8.onnx, in 8 bits
    for_openvino   model.xml and model.bin, for OpenVINO
    for_executorch model.pte, for ExecuTorch
    pretrained     a folder for from_pretrained
"""

from prunus.export.checkpoints import meta_model, shrink_checkpoint, trace_own_example
from prunus.export.configured import check_config
from prunus.export.files import export_model, largest_difference
from prunus.export.for_executorch import export_executorch, missing_for_executorch
from prunus.export.for_openvino import export_openvino, missing_for_openvino, prepare_openvino
from prunus.export.pretrained import export_pretrained
from prunus.export.programs import (
    Call,
    OnnxModel,
    export_program,
    feed_of,
    missing_for_onnx,
    open_session,
    to_onnx,
)
from prunus.export.quantised import INT8_FILE, export_int8
from prunus.export.store import load, load_keep, load_masks, save

__all__ = [
    "INT8_FILE",
    "Call",
    "OnnxModel",
    "check_config",
    "export_executorch",
    "export_int8",
    "export_model",
    "export_openvino",
    "export_pretrained",
    "export_program",
    "feed_of",
    "largest_difference",
    "load",
    "load_keep",
    "load_masks",
    "meta_model",
    "missing_for_executorch",
    "missing_for_onnx",
    "missing_for_openvino",
    "open_session",
    "prepare_openvino",
    "save",
    "shrink_checkpoint",
    "to_onnx",
    "trace_own_example",
]
