"""Cutting a checkpoint on disk: from safetensors shards to shards, without the model in memory."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import FileError, PrunusError, UserError, one_line
from prunus.export.configured import check_config
from prunus.export.store import write_keep
from prunus.export.tensor_stream import Entry, Source, write
from prunus.files import Record, read_json, write_json
from prunus.graph import Graph, Keep, Places, trace
from prunus.progress import silent
from prunus.surgery import checked_tensors, clone, resize

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

    The memory it takes is that of the largest tensor and its part, whatever the size of the model. Nothing is run: the
    cut is the one that `shrink` makes; its proof (`prunus.surgery.verify(model, graph, keep)`) takes a model of the
    class with any weights. Files that hold no weights (tokenizer, generation config) are copied.

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
        UserError: `keep` does not fit the graph or skips a block, `out` is in use, or the model cannot be built.
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
    if skipped := graph.blocks.skipped(keep):
        raise UserError(
            f"keep skips {skipped[0].module}, but shrink_checkpoint cuts widths alone. Load the model, shrink it, and "
            "save it with save_pretrained or prunus.save."
        )
    names = _known_names(model, graph, shards)
    tensors = {name: tensor.to("meta") for name, tensor in checked_tensors(model, graph).items()}
    bare = clone(model, tensors)
    small = resize(bare, graph, keep, tensors)
    _check_rest(model, graph, keep, names.values())
    places = Places(keep)
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    total = sum(len(shard.entries) for shard in shards)
    with _new_folder(out) as folder, progress(f"cutting {source.name}", total) as step:
        for shard in shards:

            def cut(name: str, shard: Source = shard) -> torch.Tensor:
                step(1, shard.path.name)
                tensor = shard.read(name)
                return places.cut(tensor, graph.layouts[names[name]]) if name in names else tensor

            entries = {
                name: entry._replace(
                    shape=tuple(graph.shape(names[name], keep)) if name in names else entry.shape
                )
                for name, entry in shard.entries.items()
            }
            shapes |= {name: entry.shape for name, entry in entries.items()}
            sizes[shard.path.name] = write(folder / shard.path.name, entries, cut, shard.metadata)
        _copy_others(source, folder)
        if (source / INDEX).exists():
            weight_map = {name: shard.path.name for shard in shards for name in shard.entries}
            total_bytes = {"total_size": sum(sizes.values())}
            write_json(folder / INDEX, {"metadata": total_bytes, "weight_map": weight_map})
        if (folder / CONFIG).exists() and _is_sayable(small):
            small.config.save_pretrained(folder)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        entries = {
            "shapes": {names.get(name, name): list(shape) for name, shape in shapes.items()},
            "names": {name: other for name, other in names.items() if name != other},
        }
        write_keep(folder, small, keep, graph, list(sizes), entries)
    return small


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


def _known_names(model: nn.Module, graph: Graph, shards: list[Source]) -> dict[str, str]:
    """The name in the graph of each tensor of the checkpoint that the model has; FileError for another model's."""
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    first: dict[int, str] = {}
    for name, tensor in own.items():
        first.setdefault(id(tensor), name)
    names = {name: first[id(tensor)] for name, tensor in own.items()}
    held: dict[str, Entry] = {name: entry for shard in shards for name, entry in shard.entries.items()}
    known = {name: names[name] for name in held if names.get(name) in graph.layouts}
    wrong = [
        f"{name} is {held[name].shape} there, {tuple(graph.shapes[other])} in the graph"
        for name, other in known.items()
        if held[name].shape != graph.shapes[other]
    ]
    lost = set(graph.parameters) - set(known.values())
    wrong += [f"{name} is missing there" for name in sorted(lost)]
    if lost and known and (strange := sorted(held.keys() - known.keys() - own.keys())):
        raise FileError(
            f"the checkpoint stores weights otherwise than {type(model).__name__} holds them: it has {strange[0]}, "
            f"but not {sorted(lost)[0]}. If it is of this class, which then joins or renames them as it loads them (of "
            "transformers: mixtures of experts), load it with from_pretrained, shrink it, and save it with "
            "save_pretrained; otherwise trace the class that it was saved from."
        )
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise FileError(
            f"the checkpoint is not of the model that was traced: {'; '.join(wrong[:SHOWN])}{more}. Trace the class "
            "that it was saved from."
        )
    return known


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
