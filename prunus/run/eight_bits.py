"""A finished run's model in 8 bits, judged on the run's data beside itself in 32 bits and beside the dense base."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from prunus import report
from prunus.errors import PrunusError, UserError
from prunus.export import INT8_FILE, OnnxModel, export_int8, missing_for_onnx, store
from prunus.files import write_json
from prunus.graph import quiet_config
from prunus.inputs import count_examples, tensors_in
from prunus.progress import silent
from prunus.run.folder import replace_nonfinite
from prunus.run.loading import BASE, load_base
from prunus.run.lock import sole_writer
from prunus.run.records import write_int8
from prunus.run.reopen import reopen_with_data
from prunus.run.stages import RESULT
from prunus.run.watching import WatchedSplit
from prunus.tasks import Task

EXAMPLES, BATCH_SIZE = 256, 32  # on which ranges are measured
MOST_BYTES = 2**29  # of these examples, which are in memory at once


def quantise_run(folder: Path, result: dict[str, Any], *, progress: Callable[..., Any] = silent) -> list[str]:
    """Write a finished run's model as model.int8.onnx, judge it on the run's data, and note it in the report.

    Ranges are measured on training examples without augmentation. If the run's folder has the dense base, that is also
    quantised and judged, so that pruning and quantisation can be told apart; its file is not kept.

    Args:
        folder: The run's folder.
        result: Its result.json.
        progress: How to show the progress.

    Returns:
        Sentences: what was written, and how good it is.

    Raises:
        UserError: onnxruntime is not installed; the model was not given by a SPEC; the data cannot be read, or have
            changed; or another process writes into the folder.
        PruningError: The file answers otherwise than the model.
        FileError: A file of the run is missing or damaged.
    """
    if missing := missing_for_onnx():
        raise UserError(f"{INT8_FILE} cannot be made: {missing}.")
    task = reopen_with_data(folder, result, "call prunus.export.export_int8 with the model and batches")
    inputs = take_inputs(task, result["settings"]["seed"])
    with sole_writer(folder):
        small = store.load(folder, task.model)
        lines = [quantise(folder, small, task, inputs)]
        try:
            found: dict[str, Any] = {"after": judge(folder, small, task, progress), "before": None}
        except PrunusError as error:
            return [*lines, f"It was not judged: {error}"]
        if (folder / BASE).exists():
            dense = load_base(folder, copy.deepcopy(task.model))
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    quantise(Path(scratch), dense, task, inputs)
                    found["before"] = judge(Path(scratch), dense, task, progress)
                except PrunusError as error:
                    lines.append(f"The dense base was not judged in 8 bits: {error}")
        result["int8"] = replace_nonfinite(found | {"examples": sum(map(count_examples, inputs))})
        write_int8(folder, result["int8"], RESULT)
        write_json(folder / "result.json", result)
        report.write_page(folder / "report.html", result)
    return [*lines, report.int8_sentence(result)]


def take_inputs(task: Task, seed: int) -> list[Any]:
    """Take the inputs on which ranges are measured: training examples in random order, not augmented.

    Args:
        task: The task.
        seed: The seed of the order.

    Returns:
        Batches with what the task's example has, so without targets: at most 256 examples in all, and at most 512 MB,
        but always one batch, of the loader's own size if a user gave a loader.
    """
    inputs: list[Any] = []
    taken, size = 0, 0
    for x, _ in task.data.train.batches(BATCH_SIZE, seed=seed):
        if isinstance(x, dict) and isinstance(task.example, dict):
            x = {name: x[name] for name in task.example}
        taken += count_examples(x)
        size += sum(tensor.nbytes for tensor in tensors_in(x))
        if inputs and (taken > EXAMPLES or size > MOST_BYTES):
            break
        inputs.append(x)
    return inputs


def quantise(folder: Path, model: nn.Module, task: Task, inputs: list[Any]) -> str:
    """Write a model of a task in 8 bits; returns a sentence. Raises what `export_int8` raises."""
    quiet_config(model)  # a program returns no cache
    return export_int8(folder, model, task.example, inputs, task.free_dims)


def judge(folder: Path, model: nn.Module, task: Task, progress: Callable[..., Any]) -> dict[str, float]:
    """Evaluate the file in 8 bits that was made of a model, on the task's test set; val if it has none.

    Raises PrunusError if the file does not take the task's examples.
    """
    answering = OnnxModel((folder / INT8_FILE).read_bytes(), model, task.example)
    split = task.data.judged
    with progress("testing in 8 bits", len(split)) as step:
        return task.evaluate(answering, WatchedSplit(split, step))
