"""A model in 8 bits as model.int8.onnx, quantised by onnxruntime with ranges that it measures on batches.

Weights are quantised per channel, activations per tensor. Pruning comes first: a quantised model cannot be cut.

Weights use seven of their eight bits, -64 to 64. Processors with AVX2 but without VNNI add two products of an
activation (0 to 255) and a weight in 16 bits, which end at 32767: with weights up to 127 such sums saturate, so the
same file answers otherwise there than elsewhere. Two products of at most 255 * 64 fit. This holds for every file,
because a file may run on another processor than the one it was made on.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PruningError, UserError
from prunus.export.files import make_freest_program
from prunus.export.programs import feed_of, missing_for_onnx, open_session, quietly, to_onnx
from prunus.files import write_atomic
from prunus.graph import evaluation_mode
from prunus.inputs import call, tensors_in

INT8_FILE = "model.int8.onnx"
# Relative difference that is allowed. Rounding alone stays far below; sums that saturate, and ranges measured on other
# inputs than the model is for, do not. Whether the answers are good enough, only the task's metric says.
LARGEST = 0.25


def export_int8(
    folder: str | Path,
    model: nn.Module,
    example: Any,
    batches: Iterable[Any],
    free_dims: Sequence[int] = (0,),
) -> str:
    """Write a model as model.int8.onnx, its weights and activations in 8 bits.

    Args:
        folder: The folder to write to.
        model: A model on the processor that returns tensors, dense or pruned; it runs in evaluation mode, and keeps
            its own.
        example: One input with a batch dimension of 1: a tensor, or a tuple or dict of arguments.
        batches: Inputs as the model takes them, on which the ranges of activations are measured: some hundred
            examples of the training set.
        free_dims: The dimensions of inputs that stay free; those beside the batch only if torch can export them so.

    Returns:
        A line for the user: the size beside 32 bits, and how far the outputs are from the model's.

    Raises:
        PrunusError: torch cannot export the model.
        PruningError: The outputs of the file are too far from the model's.
        UserError: There is no batch, or onnx or onnxruntime is not installed.
    """
    if missing := missing_for_onnx():
        raise UserError(f"{INT8_FILE} cannot be made: {missing}.")
    given = list(batches)
    if not given:
        raise UserError(
            f"{INT8_FILE}: expected at least one batch to measure ranges on, got none; give inputs."
        )
    with evaluation_mode(model), tempfile.TemporaryDirectory() as scratch:
        plain, ready, small = (Path(scratch) / f"{name}.onnx" for name in ("plain", "ready", "small"))
        (program, *_), why = make_freest_program(model, example, free_dims)
        to_onnx(program).save(plain)
        _quantise(plain, ready, small, given)
        share = small.stat().st_size / plain.stat().st_size
        difference = _difference(small.read_bytes(), model, given)
        if not difference <= LARGEST:
            raise PruningError(
                f"{INT8_FILE} differs from the model by {difference:.0%} of its outputs, allowed is {LARGEST:.0%}; it "
                "was not written. Give more batches of the data that the model is for."
            )
        write_atomic(Path(folder) / INT8_FILE, lambda temporary: temporary.write_bytes(small.read_bytes()))
    takes = f" It takes {why}" if why else ""
    return (
        f"{INT8_FILE} written; {share:.0%} of the size in 32 bits, outputs differ from the model's by {difference:.1%}."
        f"{takes}"
    )


def _quantise(plain: Path, ready: Path, small: Path, batches: Sequence[Any]) -> None:
    """Let onnxruntime fuse what it can, measure ranges on batches, and write the model in 8 bits."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            session = open_session(plain.read_bytes())
            self.feeds = iter([feed_of(session, batch) for batch in batches])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    with quietly():
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantization.quantize_static(
            ready,
            small,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,  # see above
        )


def _difference(onnx: bytes, model: nn.Module, batches: Sequence[Any]) -> float:
    """The root mean square of the difference over that of the model's outputs, on the batches."""
    session = open_session(onnx)
    off, all_ = 0.0, 0.0
    for batch in batches:
        with torch.no_grad():
            expected = [each for each in tensors_in(call(model, batch)) if each.is_floating_point()]
        got: list[Tensor] = [torch.from_numpy(each) for each in session.run(None, feed_of(session, batch))]
        floating = [each for each in got if each.is_floating_point()]
        for one, other in zip(floating, expected, strict=True):
            off += float((one - other).double().square().sum())
            all_ += float(other.double().square().sum())
    return math.sqrt(off / all_) if all_ else math.inf
