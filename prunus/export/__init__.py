"""Export: models as files and programs outside Prunus.

Its files, in the order in which to read them:

    store       keep.json and model.safetensors: save, load
    programs    torch.export, ONNX and onnxruntime: convert and call
    files       model.pt2 and model.onnx, checked against the model
"""

from prunus.export.files import RELATIVE_TOLERANCE, export_model
from prunus.export.programs import Call, as_onnx, exported, missing_for_onnx, session
from prunus.export.store import load, load_keep, load_masks, save

__all__ = [
    "RELATIVE_TOLERANCE",
    "Call",
    "as_onnx",
    "export_model",
    "exported",
    "load",
    "load_keep",
    "load_masks",
    "missing_for_onnx",
    "save",
    "session",
]
