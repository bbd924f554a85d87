"""A pruned model on disk: `keep.json`, plain data that a person can read, and `model.safetensors`.

`keep.json` states which units stayed, which shapes the original had, and which integers in its modules
changed, so loading needs the original class and nothing else: no tracing, no method, no pickle. A weight behind a
parametrisation (weight_norm, spectral_norm) is stored by its plain name and its value; the tensors behind it, listed
in the entry `behind` (name -> shape), are stored too, so that a parametrised model gets back exactly those. So are
tensors that the model keeps in plain attributes, in the entry `state`. Blocks that were skipped are in `skipped`, with
what stands in their places, and the lists of modules that are shorter without them in `shortened`.

Pruned single weights are plain zeros in `model.safetensors`, so that loading is the same, and `masks.safetensors`
marks them, one bit per weight; `keep.json` then has an entry `masks`: parameter -> number of weights that stay.

`keep.json` holds the SHA-256 of both files, and of its own other entries, so that any change is found when the model is
loaded, also one after which everything still fits together. Files of format 1, which version 0.1.0 wrote, have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import FileError, PrunusError, UserError
from prunus.export.keep_file import FORMAT, KeepFile, entries_of_blocks, read_keep
from prunus.export.stored import join
from prunus.export.tensor_stream import Source
from prunus.files import hash_file, hash_json, read_tensors, same_kind, write_json, write_tensors
from prunus.graph import (
    Graph,
    Keep,
    Maker,
    get_integer,
    kept_tensors,
    named_tensors,
    tensors_behind,
    unwrap,
    whole_tensors,
)
from prunus.sparse import Masks, packed, survivors, unpacked
from prunus.surgery import (
    Structure,
    changed_attributes,
    effective_tensors,
    shape_differences,
    with_structure,
    with_tensors,
)

TENSORS, MASKS = "model.safetensors", "masks.safetensors"


def save(folder: str | Path, small: nn.Module, keep: Keep, graph: Graph, masks: Masks | None = None) -> None:
    """Write a shrunk model as keep.json and model.safetensors, each complete or not at all.

    A model whose weights are spread over processes (by fully_shard) is gathered: all processes call this, the first
    writes, and all return when that is done, or raise an error if it fails.

    Args:
        folder: The folder to write to.
        small: The shrunk model.
        keep: The units that stay, by axis.
        graph: The graph of the original model.
        masks: The single weights that stay, bool by parameter of `small` (see `masks.sliced`); the others must be zero,
            as they are in a model that is held or was finalised.

    Raises:
        FileError: `small` is not `keep` of the traced model, or is not zero where the masks say so, or the folder holds
            the weights of the model before the cut.
        PrunusError: The files cannot be written.
    """
    keep = graph.check_keep(keep)
    small = unwrap(small)
    there = effective_tensors(small)
    tensors = whole_tensors(there)
    sharded = [tensor for name, tensor in there.items() if tensors[name] is not tensor]
    if not sharded:
        _write(Path(folder), small, tensors, keep, graph, masks)
        return
    failed = torch.ones(1, device=sharded[0].device)  # in all processes, until the first has written
    try:
        if torch.distributed.get_rank() == 0:
            _write(Path(folder), small, tensors, keep, graph, masks)
            failed.zero_()
    finally:
        torch.distributed.broadcast(failed, src=0)  # the others wait here
    if failed.item():
        raise PrunusError(f"{folder} was not written: the first process failed, whose error says why.")


def _write(
    folder: Path,
    small: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    keep: Keep,
    graph: Graph,
    masks: Masks | None,
) -> None:
    """Write a shrunk model with these whole tensors; see `save`."""
    structure = Structure.of(graph, keep, small)
    shapes = structure.renamed({n: graph.shape(n, keep) for n in graph.layouts})
    wrong = shape_differences(shapes, tensors)
    if wrong:
        raise FileError(
            f"this model does not fit the keep to be saved: {'; '.join(wrong[:3])}. Save what `shrink` returned for "
            "this keep."
        )
    behind = tensors_behind(small)
    stated = structure.renamed(graph.state)
    state = {n: t for n, t in kept_tensors(small).items() if n in stated}
    written = {TENSORS: {**tensors, **behind, **state}}
    entries = entries_of_blocks(structure)
    if masks is not None:
        _check_masks(tensors, masks)
        entries["masks"] = survivors(masks)
        written[MASKS] = {name: packed(mask) for name, mask in masks.items()}
    if behind:
        entries["behind"] = _shapes(behind)
    if state:
        entries["state"] = _shapes(state)
    if empty := [name for content in written.values() for name, tensor in content.items() if tensor.is_meta]:
        raise FileError(
            f"there is nothing to save: {empty[0]} of this model holds no numbers, because it is on the meta device. "
            "Save a model that has its weights."
        )
    _check_not_the_original(folder, graph, shapes)
    for name, content in written.items():
        write_tensors(folder / name, content, {"format": "pt"})
    write_keep(folder, small, keep, graph, list(written), entries | {"shapes": _shapes(tensors)})


def _check_not_the_original(folder: Path, graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise FileError if the folder holds the model before the cut, as save_pretrained writes it, which would be lost.

    What a save left behind that was interrupted has the shapes of a smaller model.
    """
    if (folder / "keep.json").exists() or not (folder / TENSORS).exists():
        return
    try:
        held = Source(folder / TENSORS).entries
    except FileError:  # damaged, so nothing is lost
        return
    known = {name: entry.shape for name, entry in held.items() if name in graph.shapes}
    whole = all(shape == tuple(graph.shapes[name]) for name, shape in known.items())
    cut = [name for name, shape in known.items() if shape != tuple(shapes.get(name, ()))]
    if whole and cut:
        raise FileError(
            f"{folder / TENSORS} holds the model before the cut ({cut[0]} is {known[cut[0]]} there), and would be "
            "overwritten. Save to another folder."
        )


def write_keep(
    folder: Path, small: nn.Module, keep: Keep, graph: Graph, files: Sequence[str], entries: Mapping[str, Any]
) -> None:
    """Write keep.json for files that are there.

    Args:
        folder: The folder to write to.
        small: The shrunk model, of which no numbers are used.
        keep: The units that stay, by axis.
        graph: The graph of the original model.
        files: The names of the files beside keep.json.
        entries: Entries of keep.json, see `KeepFile`: the shapes of the tensors in those files, and what else is
            there.

    Raises:
        PrunusError: The file cannot be written.
    """
    record = {
        "format": FORMAT,
        "model": type(small).__name__,
        "axes": {
            name: {"size": graph.axis(name).size, "keep": keep[name]}
            for name in graph.widths(keep)
            if name in keep
        },
        "original_shapes": {name: list(shape) for name, shape in graph.shapes.items()},
        "attributes": changed_attributes(small, graph, keep),
        **entries,
        "files": {name: hash_file(folder / name) for name in files},
    }
    write_json(folder / "keep.json", record | {"digest": hash_json(record)})


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _check_masks(tensors: Mapping[str, torch.Tensor], masks: Masks) -> None:
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
    """Read the keep of a saved model.

    Args:
        folder: The folder that `save` wrote to.
        graph: The graph of another model that is to be cut in the same way; its axes are compared.

    Returns:
        The indices that stay, by axis.

    Raises:
        FileError: The file is missing or damaged, or the graph has other axes.
    """
    axes = read_keep(folder).axes
    if graph is not None:
        there = {name: entry.size for name, entry in axes.items()}
        here = {name: axis.size for name, axis in graph.axes.items()}
        here |= dict.fromkeys(graph.blocks.keys() & there.keys(), 1)
        wrong = [name for name in {**here, **there} if there.get(name) != here.get(name)]
        if wrong:
            words = (
                f"{n} has {there.get(n, 'no')} units there, {here.get(n, 'none')} here" for n in wrong[:3]
            )
            raise FileError(
                f"{folder}/keep.json is of a network with other axes: {'; '.join(words)}. A structure fits only "
                "the architecture that it was found on."
            )
    return {name: entry.keep for name, entry in axes.items()}


def load_masks(folder: str | Path) -> dict[str, torch.Tensor]:
    """Read the masks of a saved model.

    Args:
        folder: The folder that `save` wrote to.

    Returns:
        Bool tensors of the weights' shapes by parameter, True stays; empty if the model has no masks.

    Raises:
        FileError: A file is missing or damaged, or the masks do not match keep.json.
    """
    record = read_keep(folder)
    counts = record.masks
    bits = _read_tensors(folder, MASKS, record) if counts else {}
    wrong = sorted(bits.keys() ^ counts.keys())
    found = {}
    for name in counts.keys() & bits.keys():
        try:
            found[name] = unpacked(bits[name], torch.Size(record.shapes[name]))
        except UserError:
            wrong.append(name)
    wrong += [name for name, count in survivors(found).items() if count != counts[name]]
    if wrong:
        raise FileError(
            f"{folder}/{MASKS} does not match keep.json: {', '.join(wrong[:3])} differ; save the model again."
        )
    return {name: found[name] for name in counts}


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """Rebuild a saved model.

    Args:
        folder: The folder that `save` wrote to.
        model: The original class at its original size, with any weights, or with none, on the meta device; untouched.

    Returns:
        The smaller model, on the device of `model`; on the processor if that is the meta device.

    Raises:
        FileError: `model` is not the class that was pruned (the first three differences are named), or a file is
            missing or damaged.
    """
    model = unwrap(model)
    record = read_keep(folder)
    shapes = {name: torch.Size(shape) for name, shape in record.original_shapes.items()}
    wrong = shape_differences(shapes, effective_tensors(model))
    if wrong:
        raise FileError(
            f"the model in {folder} was pruned from another one ({record.model}): {'; '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Build the class it came from, unpruned."
        )
    tensors: dict[str, torch.Tensor] = {}
    for file in [name for name in record.files if name != MASKS] or [TENSORS]:
        tensors |= _read_tensors(folder, file, record)
    try:
        tensors = join(tensors, record.parts, record.shapes)
    except ValueError as error:
        raise FileError(
            f"the weights in {folder} do not match keep.json: {error}; save the model again."
        ) from error
    tensors = {record.names.get(name, name): tensor for name, tensor in tensors.items()}
    stored = record.shapes | record.behind | record.state
    wrong = shape_differences({name: torch.Size(shape) for name, shape in stored.items()}, tensors)
    if wrong:
        raise FileError(
            f"the weights in {folder} do not match keep.json: {'; '.join(wrong[:3])}; save the model again."
        )
    model = _without_blocks(folder, model, record)
    own = effective_tensors(model) | tensors_behind(model) | kept_tensors(model)
    wrong = [name for name, tensor in tensors.items() if name in own and not same_kind(tensor, own[name])]
    if wrong:
        words = (
            f"{name} is {tensors[name].dtype} there, {own[name].dtype} in the model" for name in wrong[:3]
        )
        raise FileError(f"{folder}/model.safetensors is damaged: {'; '.join(words)}. {KeepFile.remedy}")
    _check_attributes(folder, model, record.attributes)
    device = next((t.device for t in named_tensors(model).values()), torch.device("cpu"))
    device = torch.device("cpu") if device.type == "meta" else device
    small = with_tensors(
        model, {name: tensor.to(device) for name, tensor in tensors.items()}, record.attributes
    )
    empty = [
        f"{name}.{key}".lstrip(".")
        for name, module in small.named_modules()
        for key, value in (vars(module) | module._parameters | module._buffers).items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]
    if empty:
        raise FileError(
            f"{folder} holds no numbers for {', '.join(empty[:3])}, and neither does the model, which is on the meta "
            "device. Give a model that is on another device."
        )
    return small


def _without_blocks(folder: str | Path, model: nn.Module, record: KeepFile) -> nn.Module:
    """The model without the blocks that were skipped; FileError if it has no such blocks."""
    modules = dict(model.named_modules())
    for name in (*(skip.module or None for skip in record.skipped), *record.shortened):
        if name not in modules:
            raise FileError(f"{folder}/keep.json skips {name!r}, which this model has not. {KeepFile.remedy}")
    return with_structure(model, Structure(record.skipped, record.shortened))


def _check_attributes(folder: str | Path, model: nn.Module, attributes: dict) -> None:
    """Raise FileError unless only integers, and tuples of integers, of existing modules are replaced.

    What the model is made from (a config) may also be given integers that it has not.
    """
    maker = Maker.of(model)
    for module, values in attributes.items():
        for name, value in values.items():
            try:
                old = get_integer(model.get_submodule(module), name.split("."))
            except (AttributeError, LookupError, ValueError):
                old = None
            whole = isinstance(old, (tuple, list)) and isinstance(value, list)  # files of version 0.1.0
            new = old is None and not module and maker is not None and name.partition(".")[0] in maker.kept
            if not (type(old) is type(value) is int or whole or (new and type(value) is int)):
                raise FileError(
                    f"{folder}/keep.json changes {module}.{name}, which is not an integer of this model; it was "
                    "damaged or saved from another class."
                )


def _read_tensors(folder: str | Path, name: str, record: KeepFile) -> dict[str, torch.Tensor]:
    """Read a file beside keep.json; FileError unless it is the one that was saved with it."""
    path = Path(folder) / name
    tensors = read_tensors(path)
    if record.files and hash_file(path) != record.files.get(name):
        raise FileError(
            f"{path} does not match keep.json: it has been changed or damaged since they were saved. {KeepFile.remedy}"
        )
    return tensors
