"""Cutting a checkpoint on disk: from safetensors shards to shards, without the model in memory."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from prunus.errors import FileError, PrunusError, UserError, one_line
from prunus.export.configured import check_config
from prunus.export.keep_file import entries_of_blocks
from prunus.export.store import write_keep
from prunus.export.stored import Cut, Part, cuts, first_names, named, parts_of, range_of, whole_parts
from prunus.export.tensor_stream import Entry, Source, write
from prunus.files import Record, read_json, write_json
from prunus.graph import Graph, Keep, Places, Where, take, trace
from prunus.progress import silent
from prunus.surgery import Skipped, Structure, checked_tensors, clone, resize

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SHOWN = 3  # names in an error
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}  # not copied


class Index(Record, frozen=True, kw_only=True):
    """model.safetensors.index.json. weight_map: tensor -> the file that holds it."""

    remedy = "Copy the checkpoint again."
    weight_map: dict[str, str]


def shrink_checkpoint(
    source: str | Path,
    keep: Keep,
    out: str | Path,
    *,
    graph: Graph | None = None,
    model: nn.Module | None = None,
    progress: Callable = silent,
) -> nn.Module:
    """Cut the tensors of a checkpoint to a keep, one at a time, and write a checkpoint of the same form.

    Layers that the keep skips are left out, and the tensors of those after them are renamed, as `shrink` and
    `save_pretrained` name them. The memory it takes is that of the largest tensor and its part, whatever the size of
    the model. Nothing is run: the cut is the one that `shrink` makes; its proof
    (`prunus.surgery.verify(model, graph, keep)`) takes a model of the class with any weights. Files that hold no
    weights (tokenizer, generation config) are copied.

    Source: ours.

    Args:
        source: The folder of the checkpoint: model.safetensors, or shards with their index, and config.json.
        keep: axis -> indices that stay.
        out: The folder to write to, which must not exist yet, or be empty. It appears once it is complete.
        graph: The graph of the model; None: traced from the config.
        model: The model that the checkpoint is of, with any weights or none (on the meta device); None: built from
            config.json by transformers.
        progress: How to show the progress.

    Returns:
        The small model on the meta device. `prunus.load(out, model)` reads what was written; so does `from_pretrained`
        if the config can express the cut (`select` with uniform=True sees to that), otherwise a warning says why not.

    Raises:
        FileError: A shard is missing, torn or of another model.
        PrunusError: `out` cannot be written; then nothing is left there.
        UserError: `keep` does not fit the graph, or skips a block that is no whole layer of a list; `out` is in use, or
            the model cannot be built.
    """
    source, out = Path(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in use; give a folder that is empty or does not exist.")
    shards = open_shards(source)
    try:
        model = meta_model(source) if model is None else model
        graph = trace_own_example(model) if graph is None else graph
    except FileError:
        raise
    except UserError as error:
        raise UserError(
            f"{error} Give the model, on the meta device if you like, and its graph: "
            "shrink_checkpoint(..., graph=prunus.trace(model, example), model=model)."
        ) from error
    keep = graph.check_keep(keep)
    stored, first = parts_of(model), first_names(model)
    held = _known_parts(model, graph, shards, stored)
    tensors = {name: tensor.to("meta") for name, tensor in checked_tensors(model, graph).items()}
    small = resize(clone(model, tensors), graph, keep, tensors)
    structure = Structure.of(graph, keep, small)
    _check_layers(small)
    _check_rest(model, graph, keep, {first[part.tensor] for part in held.values()})
    places = Places(keep)

    def stays(name: str) -> Where:
        return places.stay(graph.layouts[first[name]], torch.device("cpu"))

    made = _cuts(small, held, stored, structure.originals(first), stays)
    entries = _entries(made, small, structure, first)
    unknown = {name: shard for shard in shards for name in shard.entries if name not in held}
    copied = structure.originals(
        unknown
    )  # what the model does not know stays, except in layers that are left out
    entries["shapes"] |= {
        name: list(unknown[original].entries[original].shape) for name, original in copied.items()
    }
    with _new_folder(out) as folder, progress(f"cutting {source.name}", len(made) + len(copied)) as step:
        sizes, weight_map = _write_shards(folder, shards, made, copied, step)
        _copy_others(source, folder)
        if (source / INDEX).exists():
            total_bytes = {"total_size": sum(sizes.values())}
            write_json(folder / INDEX, {"metadata": total_bytes, "weight_map": weight_map})
        if (folder / CONFIG).exists() and _is_sayable(small):
            small.config.save_pretrained(folder)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        write_keep(folder, small, keep, graph, list(sizes), entries)
    return small


def _write_shards(
    folder: Path,
    shards: list[Source],
    made: Mapping[str, Cut],
    copied: Mapping[str, str],
    step: Callable[[int, str], None],
) -> tuple[dict[str, int], dict[str, str]]:
    """Write the shards, each from the tensors of the original's shard, and none that is left without tensors.

    Args:
        folder: Where they go.
        shards: Those of the original.
        made: How the tensors that are cut are made, by name.
        copied: The original's names of the tensors that are copied as they are, by name.
        step: Is called with 1 and the name of the shard for each tensor.

    Returns:
        The bytes of tensors by the name of the shard, and the shard by the name of the tensor.
    """
    sources = {cut.source: name for name, cut in made.items()} | {old: new for new, old in copied.items()}
    sizes: dict[str, int] = {}
    weight_map: dict[str, str] = {}
    for shard in shards:

        def read(name: str, shard: Source = shard) -> torch.Tensor:
            step(1, shard.path.name)
            if name in copied:
                return shard.read(copied[name])
            return take(shard.read(made[name].source), made[name].where)

        inside = {sources[name]: entry for name, entry in shard.entries.items() if name in sources}
        for name in inside.keys() & made.keys():
            inside[name] = inside[name]._replace(shape=made[name].part.shape)
        if inside:
            sizes[shard.path.name] = write(folder / shard.path.name, inside, read, shard.metadata)
            weight_map |= dict.fromkeys(inside, shard.path.name)
    return sizes, weight_map


def open_shards(folder: Path) -> list[Source]:
    """Open the safetensors files of a checkpoint; FileError if one is missing, torn, or not what the index says."""
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise FileError(
                f"{folder} holds neither {SINGLE} nor {INDEX}; give the folder of a checkpoint in safetensors "
                "(`save_pretrained` writes one)."
            )
        return [Source(folder / SINGLE)]
    index = read_json(folder / INDEX, Index)
    shards = [Source(folder / Path(name).name) for name in sorted(set(index.weight_map.values()))]
    held = {name: shard.path.name for shard in shards for name in shard.entries}
    wrong = sorted({*held.items()} ^ {*index.weight_map.items()})
    if wrong:
        words = ", ".join(f"{name} in {file}" for name, file in wrong[:SHOWN])
        raise FileError(f"{folder / INDEX} and its files do not agree about {words}. {Index.remedy}")
    return shards


def meta_model(folder: Path) -> nn.Module:
    """Build the model of a config.json on the meta device, as the class that it names.

    Args:
        folder: The folder of a checkpoint of transformers; its weights are not read.

    Returns:
        The model, in evaluation mode, with parameters of the type that the config states.

    Raises:
        FileError: There is no config.json, or it is damaged.
        UserError: transformers is missing, or cannot build such a model.
    """
    config = read_json(folder / CONFIG)
    names = config.get("architectures") or []
    try:
        transformers: Any = importlib.import_module("transformers")
        kind = getattr(transformers, names[0])
        made = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = kind(made).eval()
        stated = vars(made).get("dtype", vars(made).get("torch_dtype"))  # older versions: torch_dtype
        if isinstance(stated, torch.dtype) and stated.is_floating_point:
            for parameter in model.parameters():  # as from_pretrained makes them; buffers keep their own type
                parameter.data = parameter.data.to(stated)
        return model
    except ImportError as error:
        raise UserError(f"transformers cannot be imported ({error}): pip install 'prunus[hf]'.") from error
    except (IndexError, AttributeError) as error:
        raise UserError(f"{folder}/config.json names no class of transformers ({names}).") from error
    except Exception as error:  # whatever a library raises about a config
        raise UserError(f"{folder}/config.json describes no {names[0]} ({one_line(error)}).") from error


def trace_own_example(model: nn.Module) -> Graph:
    """Trace a model of transformers on the inputs that it gives as its own example; UserError if it gives none."""
    example = getattr(model, "dummy_inputs", None)
    if not isinstance(example, Mapping) or getattr(model, "main_input_name", None) not in (None, *example):
        raise UserError(
            f"{type(model).__name__} does not say on which inputs it runs, so it can be traced only with an example: "
            "prunus.trace(model, example)."
        )
    return trace(model, dict(example))


def _check_layers(small: nn.Module) -> None:
    """Raise UserError if a block is skipped that is no layer of a list which is shorter without it."""
    for module in small.modules():
        if isinstance(module, Skipped):
            raise UserError(
                f"keep skips {module.skip.module}, but a checkpoint can lack only whole layers of a ModuleList or "
                "Sequential, without which the model runs the same operators. Skip such layers alone, or load the "
                "model, shrink it, and save it with prunus.save, which can say what stands in the place of a block."
            )


def _check_rest(model: nn.Module, graph: Graph, keep: Keep, held: Collection[str]) -> None:
    """Raise UserError if a tensor that the checkpoint lacks would have to be cut."""
    lost = [
        name
        for name, shape in graph.shapes.items()
        if name not in held and name not in graph.parameters and graph.shape(name, keep) != shape
    ]
    if lost:
        raise UserError(
            f"{lost[0]} of {type(model).__name__} is not in the checkpoint, but would have to be cut. Keep its axis "
            f"whole: {graph.explain(lost[0])}"
        )


def _known_parts(
    model: nn.Module, graph: Graph, shards: list[Source], stored: Mapping[str, Part]
) -> dict[str, Part]:
    """The part of the model that each tensor of the checkpoint is, if it is any; FileError for another model's.

    stored: how transformers would store the model.
    """
    first = first_names(model)
    there: dict[str, Entry] = {name: entry for shard in shards for name, entry in shard.entries.items()}
    parts = {**whole_parts(model), **stored}
    known = {name: parts[name] for name in there if name in parts}
    known = {name: part for name, part in known.items() if first[part.tensor] in graph.layouts}
    wrong = [
        f"{name} is {there[name].shape} there, {part.shape} in the graph"
        for name, part in known.items()
        if there[name].shape != part.shape
    ]
    numbers = dict.fromkeys(graph.parameters, 0)
    for part in known.values():
        numbers[first[part.tensor]] = numbers.get(first[part.tensor], 0) + prod(part.shape)
    lost = sorted(name for name in graph.parameters if numbers[name] < prod(graph.shapes[name]))
    wrong += [f"{name} is missing there" for name in lost]
    if lost and known and (strange := sorted(there.keys() - parts.keys())):
        raise FileError(
            f"the checkpoint stores weights otherwise than {type(model).__name__} holds them: it has {strange[0]}, "
            f"but not {lost[0]}. If it is of this class, which then joins or computes them as it loads them, load it "
            "with from_pretrained, shrink it, and save it with save_pretrained; otherwise trace the class that it was "
            "saved from."
        )
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise FileError(
            f"the checkpoint is not of the model that was traced: {'; '.join(wrong[:SHOWN])}{more}. Trace the class "
            "that it was saved from."
        )
    return known


def _cuts(
    small: nn.Module,
    held: Mapping[str, Part],
    stored: Mapping[str, Part],
    originals: Mapping[str, str],
    stays: Callable[[str], Where],
) -> dict[str, Cut]:
    """The tensors of the small model's files, by name, in the form in which the checkpoint holds the original's.

    held: the parts in the checkpoint. stored: those of them, and others, that are as transformers would store them; the
    rest is as the model holds it. Raises UserError if some tensor of the small model cannot be made of them.
    """
    own = whole_parts(small)
    converted = {name: part for name, part in held.items() if name in stored}
    as_it_is = {name: part for name, part in held.items() if name not in stored}
    found = cuts(converted, parts_of(small), originals, stays) | cuts(as_it_is, own, originals, stays)
    numbers: dict[str, int] = {}
    for cut in found.values():
        numbers[cut.part.tensor] = numbers.get(cut.part.tensor, 0) + prod(cut.part.shape)
    held_ones = {part.tensor for part in held.values()}
    lost = [
        name
        for name, part in own.items()
        if originals[name] in held_ones and numbers.get(name, 0) != prod(part.shape)
    ]
    if lost:
        raise UserError(
            f"{lost[0]} of the small {type(small).__name__} is stored in other parts than that of the original. "
            "Load the model, shrink it, and save it with save_pretrained."
        )
    return found


def _entries(
    made: Mapping[str, Cut], small: nn.Module, structure: Structure, first: Mapping[str, str]
) -> dict[str, Any]:
    """The entries of keep.json that say what is in the files."""
    entries: dict[str, Any] = entries_of_blocks(structure) | {"shapes": {}, "names": {}, "parts": {}}
    own = structure.renamed({name: str(structure.name(other)) for name, other in first.items()})
    shapes = {name: list(tensor.shape) for name, tensor in named(small).items()}
    for name, cut in made.items():
        tensor, shape = own[cut.part.tensor], shapes[cut.part.tensor]
        entries["shapes"][tensor] = shape
        if list(cut.part.shape) != shape or cut.part.dims != list(range(len(shape))):
            entries["parts"][name] = msgspec.to_builtins(range_of(cut.part, tensor))
        elif name != tensor:
            entries["names"][name] = tensor
    return entries


def _is_sayable(small: nn.Module) -> bool:
    """Whether the config of a small model makes it again; warns of what that means if not."""
    try:
        check_config(small)
    except UserError as error:
        warnings.warn(
            f"config.json stays that of the original, so prunus.load reads what was written, but from_pretrained does "
            f"not: {error}",
            stacklevel=3,
        )
        return False
    return True


def _copy_others(source: Path, folder: Path) -> None:
    """Copy the files that hold no weights."""
    for path in source.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS and path.name != INDEX:
            shutil.copyfile(path, folder / path.name)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside the one wanted, which takes its place once it is complete, and is removed otherwise."""
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield folder
        folder.chmod(0o755)
        if out.exists():
            out.rmdir()  # it is empty
        folder.replace(out)
    except OSError as error:
        raise PrunusError(
            f"could not write {out}: {error}. Free some space or choose another folder."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
