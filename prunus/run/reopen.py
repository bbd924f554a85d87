"""Making the task of a finished run again: without its data, for answers, exports and times, or with them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunus.data import NO_EXAMPLES, Data, Fingerprint
from prunus.errors import FileError, UserError
from prunus.inputs import tensors_in
from prunus.methods import configure
from prunus.run.prepare import make_task
from prunus.run.provenance import check_unchanged, fingerprint_of, read_fingerprint, split_of
from prunus.run.settings import READ_BY, Settings
from prunus.tasks import DEFAULT, Given, Task, find_kind, kinds, own_task

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
FORMAT = {"format": 1, "items": {}}  # what a fingerprint has beside its summary


def reopen_task(
    folder: Path,
    result: dict[str, Any],
    model: nn.Module | None = None,
    instead: str = "call prunus.run.load_run(folder, model) with the model",
) -> Task:
    """Make the task of a finished run again, with its original model and without its data.

    Args:
        folder: The run's folder.
        result: Its result.json.
        model: The original model; None: it is built from the SPEC that the run stores.
        instead: What to do if the model was not given by a SPEC.

    Returns:
        The task. Of a built-in one, `data` holds no examples, but what the run says of them.

    Raises:
        UserError: The model was not given by a SPEC, or the task is an object of the user's own.
        FileError: result.json is damaged.
    """
    settings = result["settings"]
    name = settings.get("task", DEFAULT)  # runs of version 0.1.0 have none
    if ":" in name:
        task = own_task(name, settings["seed"])
        return task if model is None else task.on(model)
    if name not in kinds():
        raise UserError(
            f"the task of {folder} was an object of your own, a {name}, which cannot be made from its name. Give "
            "`prunus run --task package.module:callable`, or load the smaller model alone: prunus.load(folder, model)."
        )
    if model is None and ":" not in settings["model"]:
        raise UserError(f"{settings['model']} cannot be built from its name; {instead}.")
    kind = find_kind(name)
    options = configure(kind.options_class, settings.get("task_options", ()), f"option of task {name}")
    given = Given(model=model or settings["model"], data=describe_data(folder, result), seed=settings["seed"])
    task = kind.make(given, options)
    try:
        task.restore(result.get("conventions") or {})
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise FileError(
            f"{folder / 'result.json'} has no conventions of the task {name} ({error!r}); copy the run again."
        ) from error
    return task


def reopen_with_data(folder: Path, result: dict[str, Any], instead: str) -> Task:
    """Make the task of a finished run again, with its original model and its data, which are read again.

    Args:
        folder: The run's folder.
        result: Its result.json.
        instead: What to do if the model was not given by a SPEC.

    Returns:
        The task.

    Raises:
        UserError: As in `reopen_task`, or the data cannot be read, or have changed since the run began.
        FileError: A file is damaged.
    """
    task, settings = reopen_task(folder, result, instead=instead), result["settings"]
    if ":" not in settings.get("task", DEFAULT):
        known = {field.name for field in fields(Settings)}
        stored = {name: settings[name] for name in READ_BY["base"] if name in known & settings.keys()}
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        try:
            task = make_task(settings["model"], None, settings["data"], Settings(**read), split_of(folder))
        except UserError as error:
            raise UserError(
                f"the data of {folder} are needed, but cannot be read: {error} They are {settings['data']}, where a "
                "relative path begins in this folder."
            ) from error
    if (before := read_fingerprint(folder)) is not None:
        check_unchanged(folder, before, fingerprint_of(task.data))
    return task


def describe_data(folder: Path, result: dict[str, Any]) -> Data:
    """Return what a finished run says about its data, without examples.

    Args:
        folder: The run's folder.
        result: Its result.json.

    Returns:
        The data: classes, fingerprint, and an example of zeros.

    Raises:
        FileError: result.json is damaged.
    """
    stored, file = result.get("data"), folder / "result.json"  # runs of version 0.1.0 have no data
    known = None if stored is None else Fingerprint.from_json({**stored, **FORMAT}, file)
    try:
        example = make_example(result["input"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise FileError(
            f"{file} does not say what an input of its model is ({error}); copy the run again."
        ) from error
    classes = result["input"].get("classes")
    return Data(str(folder), classes, example, NO_EXAMPLES, NO_EXAMPLES, NO_EXAMPLES, known)


def describe_example(example: Any) -> dict[str, Any]:
    """Return the shape and type of one input, without the batch dimension; of several tensors those of each.

    Args:
        example: An input: a tensor, a tuple, list or dict.

    Returns:
        {"shape": ...} or {"shapes": ...}, and {"types": ...} unless all are float32.
    """
    shapes = tree_map(lambda leaf: list(leaf.shape[1:]) if isinstance(leaf, Tensor) else None, example)
    types = tree_map(lambda leaf: _type(leaf) if isinstance(leaf, Tensor) else None, example)
    plain = all(leaf.dtype == torch.float32 for leaf in tensors_in(example))
    return {"shape" if isinstance(example, Tensor) else "shapes": shapes} | (
        {} if plain else {"types": types}
    )


def make_example(described: dict[str, Any]) -> Any:
    """Make an input of what `describe_example` returned, with a batch dimension of 1: of zeros, integers of ones."""
    return _filled(
        described["shape"] if "shape" in described else described["shapes"], described.get("types")
    )


def _filled(shapes: Any, types: Any) -> Any:
    if shapes is None:
        return None
    if isinstance(shapes, dict):
        return {name: _filled(shape, types and types[name]) for name, shape in shapes.items()}
    if not all(isinstance(size, int) for size in shapes):
        return tuple(_filled(shape, types and types[at]) for at, shape in enumerate(shapes))
    known = {_type(torch.empty(0, dtype=dtype)): dtype for dtype in DTYPES}
    dtype = known[types or "float32"]
    return torch.full((1, *shapes), 0 if dtype.is_floating_point else 1, dtype=dtype)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
