"""A pruned model on disk: `keep.json`, plain data a person can read, and `model.safetensors`.

`keep.json` says which units stayed, which shapes the original had, and which integers in its modules
changed, so loading needs the original class and nothing else: no tracing, no method, no pickle.

Where single weights were pruned, `model.safetensors` holds them as plain zeros, so that loading is the same, and
`masks.safetensors` which they are, a bit each; `keep.json` then has an entry `masks`: parameter -> how many stay.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from prunus.errors import FileError, UserError
from prunus.files import read_json, read_tensors, write_json, write_tensors
from prunus.graph import Graph, Keep, named_tensors
from prunus.sparse import Masks, packed, survivors, unpacked
from prunus.surgery import changed_attributes, effective_tensors, shape_differences, with_tensors

FORMAT = 1
MASKS = "masks.safetensors"


def save(folder: str | Path, small: nn.Module, keep: Keep, graph: Graph, masks: Masks | None = None) -> None:
    """Write a shrunk model to `folder` as keep.json and model.safetensors, both whole or not at all.

    masks: which single weights of `small` stay, by parameter (see `masks.sliced`); the others must be zero in it
    (they are in a model that is held, or was finalised).
    Raises FileError if `small` is not `keep` of the traced model or is not zero where the masks say so, PrunusError
    if the disk refuses.
    """
    keep = graph.checked(keep)
    tensors = effective_tensors(small)
    wrong = shape_differences({n: graph.shape(n, keep) for n in graph.layouts}, tensors)
    if wrong:
        raise FileError(f"this model does not fit the keep to be saved: {'; '.join(wrong[:3])}.")
    record = {
        "format": FORMAT,
        "model": type(small).__name__,
        "axes": {
            name: {"size": graph.axes[name].size, "keep": keep[name]} for name in graph.axes if name in keep
        },
        "original_shapes": {name: list(shape) for name, shape in graph.shapes.items()},
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "attributes": changed_attributes(small, graph),
    }
    folder = Path(folder)
    if masks is not None:
        _check_masks(tensors, masks)
        record["masks"] = survivors(masks)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    if masks is not None:
        write_tensors(folder / MASKS, {name: packed(mask) for name, mask in masks.items()}, {"format": "pt"})
    write_json(folder / "keep.json", record)


def _check_masks(tensors: dict[str, torch.Tensor], masks: Masks) -> None:
    for name, mask in masks.items():
        if name not in tensors or mask.dtype != torch.bool or mask.shape != tensors[name].shape:
            there = f"{tuple(tensors[name].shape)} bool" if name in tensors else "absent: no such weight"
            raise FileError(
                f"masks to be saved: {name} should be {there}, is {tuple(mask.shape)} {mask.dtype}. "
                "Give the masks of the shrunk model (masks.sliced)."
            )
        if tensors[name][~mask.to(tensors[name].device)].count_nonzero():
            raise FileError(
                f"{name} is not zero where its mask says so; hold the model by its masks (masks.hold) before saving."
            )


def load_keep(folder: str | Path, graph: Graph | None = None) -> dict[str, list[int]]:
    """The keep of a saved model: {axis name: indices}. graph: of another model that is to be cut alike.

    Raises FileError if the file is missing or damaged, or the graph has not the same axes.
    """
    axes = _record(folder)["axes"]
    if graph is not None:
        there = {name: entry["size"] for name, entry in axes.items()}
        here = {name: axis.size for name, axis in graph.axes.items()}
        wrong = [name for name in {**here, **there} if there.get(name) != here.get(name)]
        if wrong:
            words = (
                f"{n} has {there.get(n, 'no')} units there, {here.get(n, 'none')} here" for n in wrong[:3]
            )
            raise FileError(
                f"{folder}/keep.json is of a network with other axes: {'; '.join(words)}. A structure goes with "
                "the one architecture it was found on."
            )
    return {name: list(entry["keep"]) for name, entry in axes.items()}


def load_masks(folder: str | Path) -> dict[str, torch.Tensor]:
    """The masks of a saved model: {parameter name: bool tensor of its shape, True stays}; none if it has none.

    Raises FileError if a file is missing or damaged, or the masks are of another model than keep.json.
    """
    record = _record(folder)
    counts = record.get("masks", {})
    bits = read_tensors(Path(folder) / MASKS) if counts else {}
    wrong = sorted(bits.keys() ^ counts.keys())
    found = {}
    for name in counts.keys() & bits.keys():
        try:
            found[name] = unpacked(bits[name], torch.Size(record["shapes"][name]))
        except UserError:
            wrong.append(name)
    wrong += [name for name, count in survivors(found).items() if count != counts[name]]
    if wrong:
        raise FileError(
            f"{folder}/{MASKS} does not go with keep.json: {', '.join(wrong[:3])} differ; save the model again."
        )
    return {name: found[name] for name in counts}


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """The model saved in `folder`, rebuilt from `model`: the original class at its original size, any weights.

    `model` is untouched. Raises FileError if it is not what was pruned (the first three differences are named)
    or a file is missing or damaged.
    """
    record = _record(folder)
    shapes = {name: torch.Size(shape) for name, shape in record["original_shapes"].items()}
    wrong = shape_differences(shapes, effective_tensors(model))
    if wrong:
        raise FileError(
            f"the model in {folder} was pruned from another one ({record['model']}): {'; '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Build the class it came from, unpruned."
        )
    tensors = read_tensors(Path(folder) / "model.safetensors")
    wrong = shape_differences({name: torch.Size(shape) for name, shape in record["shapes"].items()}, tensors)
    if wrong:
        raise FileError(f"{folder}/model.safetensors does not go with keep.json: {'; '.join(wrong[:3])}.")
    _check_attributes(folder, model, record["attributes"])
    device = next((t.device for t in named_tensors(model).values()), torch.device("cpu"))
    return with_tensors(
        model, {name: tensor.to(device) for name, tensor in tensors.items()}, record["attributes"]
    )


def _check_attributes(folder: str | Path, model: nn.Module, attributes: dict) -> None:
    """Only integers, and tuples of integers, of modules that exist are replaced."""
    modules = dict(model.named_modules())
    for module, values in attributes.items():
        for name, value in values.items():
            old = vars(modules[module]).get(name) if module in modules else None
            if not (
                type(old) is type(value) is int
                or (isinstance(old, (tuple, list)) and isinstance(value, list))
            ):
                raise FileError(
                    f"{folder}/keep.json changes {module}.{name}, which is no integer of this model."
                )


def _record(folder: str | Path) -> dict:
    path = Path(folder) / "keep.json"
    record = read_json(path)
    if record.get("format") != FORMAT or not _well_formed(record):
        raise FileError(f"{path} is not a keep file of format {FORMAT}; save the model again.")
    return record


def _well_formed(record: dict) -> bool:
    """Whether every entry has the form `save` gives it."""

    def ints(value: object) -> bool:
        return isinstance(value, list) and all(type(i) is int for i in value)

    def dicts(*keys: str) -> bool:
        return all(isinstance(record.get(key), dict) for key in keys)

    return (
        dicts("axes", "original_shapes", "shapes", "attributes")
        and all(
            isinstance(a, dict) and ints(a.get("keep")) and type(a.get("size")) is int
            for a in record["axes"].values()
        )
        and all(map(ints, [*record["original_shapes"].values(), *record["shapes"].values()]))
        and all(isinstance(a, dict) for a in record["attributes"].values())
        and isinstance(record.get("masks", {}), dict)
        and all(name in record["shapes"] and type(n) is int for name, n in record.get("masks", {}).items())
        and all(type(v) is int or ints(v) for a in record["attributes"].values() for v in a.values())
    )
