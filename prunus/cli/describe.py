"""Tables and text for `prunus inspect`, `predict`, `methods` and `run --dry-run`."""

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from prunus import selection, zoo
from prunus.data import Data, load_data
from prunus.errors import UserError
from prunus.export import meta_model
from prunus.files import expand_home, read_json
from prunus.graph import Graph
from prunus.methods import Method, Pruned, find, names, option_types, type_in_words
from prunus.metrics import format_number
from prunus.options import Count, Pixels, check_value
from prunus.progress import Step
from prunus.refit import Curve, Curves, Moments
from prunus.selection import Budget, cost
from prunus.sparse import masks
from prunus.tasks import Kind, find_kind, kinds
from prunus.train import Recipe

DEFAULT_SHAPE, DEFAULT_CLASSES, ZOO_CLASSES = (3, 224, 224), 1000, 10  # ImageNet's; the zoo is for CIFAR-10
REASONS = 12  # reasons that are shown
IMAGES, BATCH = 512, 64  # of which curves are made
SHARES = (0.75, 0.5, 0.25)  # of the units, at which curves are shown


def load_images(model: str, data: str | None) -> Data | None:
    """The images that are named, read as the model expects them; nothing is trained on them."""
    if data is None:
        return None
    return load_data(data, skip_broken=True, expected=zoo.expected_images(model), workers=0)


def language_model(model: str) -> nn.Module | None:
    """The model of texts that a folder of transformers describes, without memory for its weights; None for others."""
    source, _, name = model.partition(":")
    folder = expand_home(name)
    if source != "hf" or not read_json(folder / "config.json").get("architectures"):
        return None
    found = meta_model(folder)
    return found if getattr(found, "main_input_name", None) == "input_ids" else None


def input_of(
    model: str, data: Data | None, shape: tuple[int, int, int] | None, classes: int | None
) -> tuple[tuple[int, ...], int]:
    """Shape of one input and number of classes: as given, otherwise the data's, otherwise the model's usual ones."""
    check_value("classes", classes, Count | None)
    for size in shape or ():
        check_value("input_shape", size, Pixels)
    if data is not None:
        channels, height, width = data.example.shape[1:]
        if (number := classes or data.classes) is None:
            raise UserError(f"{data.name} has no classes; give their number with --classes.")
        return shape or (channels, height, width), number
    source, _, name = model.partition(":")
    if source == "zoo":
        return shape or zoo.native_shape(name), classes or ZOO_CLASSES
    if source == "hf":
        stated, labels = zoo.stated_images(name)
        return shape or stated or DEFAULT_SHAPE, classes or labels or DEFAULT_CLASSES
    return shape or DEFAULT_SHAPE, classes or DEFAULT_CLASSES


def graph(traced: Graph, least: Mapping[str, tuple[int, str]]) -> Group:
    """The axes of a graph, the fixed dimensions with reasons, and the costs.

    Args:
        traced: The graph.
        least: The fewest units of each axis with the reason, see `selection.min_units`.
    """
    axes = Table(title="axes: what can shrink, and what shrinks with it", title_justify="left")
    axes.add_column("axis", overflow="fold")
    axes.add_column("kind", no_wrap=True)
    axes.add_column("units", justify="right", overflow="fold")
    axes.add_column("shrinks in", overflow="fold")
    whole = {name: why for name, (units, why) in least.items() if units == traced.axes[name].size > 1}
    if whole:
        axes.add_column("stays whole", overflow="fold")
    for name, axis in traced.axes.items():
        tensors = [member.tensor for member in traced.members(name)]
        modules = dict.fromkeys(tensor.rpartition(".")[0] or tensor for tensor in tensors)
        cells = (name, traced.kinds[name], str(axis.size), list_first(list(modules)), whole.get(name, ""))
        axes.add_row(*map(Text, cells[: len(axes.columns)]))
    reasons = Counter(why for _, why in traced.fixed)
    lines = [f"  {number} x {why}" for why, number in reasons.most_common(REASONS)]
    lines += [f"  and {len(reasons) - REASONS} more reasons"] if len(reasons) > REASONS else []
    costs = (
        f"{format_number(cost.macs(traced), 3)} multiply-adds, {format_number(cost.params(traced), 3)} parameters, "
        f"{cost.weights_mb(traced):.3g} MB of weights, {cost.memory_mb(traced):.3g} MB peak activations "
        f"{f'and {cached:.3g} MB of keys and values ' if (cached := cost.cache_mb(traced)) else ''}for one input; "
        f"halving every axis removes {traced.coverage():.1%} of the parameters and "
        f"{cost.coverage(traced):.1%} of the multiply-adds."
    )
    modules = [block.module for block in traced.blocks.values()]
    depth = f"blocks that can be skipped: {list_first(modules, 12) or 'none'} (docs/depth.md)"
    return Group(axes, Text("fixed dimensions and why:"), Text("\n".join(lines)), Text(depth), Text(costs))


def graph_json(traced: Graph, least: Mapping[str, tuple[int, str]], found: Curves | None) -> str:
    """The same as JSON: axes with kind, units, the fewest that stay and why, and members; what is fixed; the blocks
    that can be skipped; costs; and the curves, if they were measured."""
    axes = {
        name: {
            "kind": traced.kinds[name],
            "units": axis.size,
            "least": least[name][0],
            "least_because": least[name][1],
            "members": [[member.tensor, member.dim, member.role] for member in traced.members(name)],
        }
        for name, axis in traced.axes.items()
    }
    costs = {name: cost.of(traced, name, {}) for name in cost.CLOSED_FORMS}
    blocks = {name: block.module for name, block in traced.blocks.items()}
    told = {"axes": axes, "fixed": traced.fixed, "blocks": blocks, "costs": costs}
    if found is not None:
        told["unexplained"] = {
            name: {f"{share:g}": left for share, left in zip(SHARES, unexplained(curve), strict=True)}
            for name, curve in found.axes.items()
        }
    return json.dumps(told, indent=1)


def measure_curves(
    model: nn.Module,
    traced: Graph,
    data: Data,
    progress: Callable[..., AbstractContextManager[Step]],
) -> Curves:
    """What each axis leaves unexplained, from images to train on."""
    with progress("measuring", IMAGES // BATCH) as step:

        def batches() -> Iterator[torch.Tensor]:
            for images, _ in islice(data.train.batches(BATCH, seed=0), IMAGES // BATCH):
                yield images
                step(1)

        return Moments(model.eval(), traced, batches()).curves()


def curves(found: Curves) -> Table:
    """The curves at shares of the units of each axis."""
    table = Table(
        title="sensitivity: what of their outputs the layers that read an axis leave unexplained with fewer units",
        title_justify="left",
    )
    table.add_column("axis", overflow="fold")
    table.add_column("layers", justify="right")
    for share in SHARES:
        table.add_column(f"{share:.0%} of units", justify="right")
    for name, curve in found.axes.items():
        table.add_row(Text(name), str(curve.products), *(f"{left:.1%}" for left in unexplained(curve)))
    for name, why in found.left.items():
        table.add_row(Text(name), Text(why))
    return table


def unexplained(curve: Curve) -> list[float]:
    """What is left unexplained at each of the shares of the units."""
    return [curve.unexplained(max(1, round(share * len(curve.order)))) for share in SHARES]


def list_first(names: list[str], most: int = 4) -> str:
    """List the first few names, and say how many more there are."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def plan(traced: Graph, found: Pruned) -> str:
    """The result of a dry run: widths and costs, or the surviving weights of each layer."""
    if found.masks is None:
        return str(selection.plan(traced, found.keep))
    counts = {name: (mask.numel(), int(mask.count_nonzero())) for name, mask in found.masks.items()}
    before, after = zip(*counts.values(), strict=True)
    counts["all of these"] = sum(before), sum(after)
    rows = [("weight", "before", "after", "kept")]
    rows += [(name, str(old), str(new), f"{new / old:.2%}") for name, (old, new) in counts.items()]
    wide = max(len(name) for name, *_ in rows)
    lines = [f"{name:<{wide}} {old:>10} {new:>10} {share:>8}" for name, old, new, share in rows]
    lines += [f"{name} is left dense: {why}" for name, why in found.left_dense.items()]
    if found.pattern is None:
        gone = masks.dead(traced, found.masks)
        units = sum(traced.axes[axis].size - len(kept) for axis, kept in gone.items())
        lines.append(f"units that are removed because nothing passes through them any more: {units}")
    return "\n".join(lines)


def methods() -> Table:
    """A table of all methods, each with its docstring's first line."""
    table = Table()
    table.add_column("method", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    table.add_column("what it does")
    for name in names():
        found = find(name)
        limit = "--budget" if found.limit is Budget else "--sparsity"
        table.add_row(name, limit, Text(found.doc.splitlines()[0]))
    return table


def method(found: Method) -> Group:
    """One method: its docstring, and its options with types, defaults and meanings."""
    return documented(
        found.doc, found.config_class, f"options of {found.name}, each given as --set NAME=VALUE"
    )


def tasks() -> Table:
    """A table of all built-in tasks, each with its docstring's first line."""
    table = Table()
    table.add_column("task", no_wrap=True)
    table.add_column("what it is")
    for name in kinds():
        table.add_row(name, Text(find_kind(name).doc.splitlines()[0]))
    return table


def task(found: Kind) -> Group:
    """One task: its docstring, its options with types, defaults and meanings, and the fields of its recipes."""
    title = f"options of {found.name}, each given as --NAME VALUE"
    return Group(documented(found.doc, found.options_class, title), Text(), recipe())


def recipe() -> Group:
    """The fields of a recipe with types and meanings."""
    doc = Text(
        "The recipe of each training, whose fields are given as --recipe [base.|search.|recover.]NAME=VALUE. Without a "
        "part all three trainings get it; what is not given is as the task advises."
    )
    table = Table.grid(padding=(0, 2))
    meanings = meanings_of(Recipe)
    for name, hint in option_types(Recipe):
        table.add_row(name, Text(type_in_words(hint)), Text(meanings[name]))
    return Group(doc, Text(), table)


def documented(doc: str, config_class: type, title: str) -> Group:
    """A docstring, and the options of a class with types, defaults and meanings."""
    table = Table(title=title, title_justify="left")
    for heading in ("option", "type", "default"):
        table.add_column(heading)
    defaults = config_class()
    for name, hint in option_types(config_class):
        value = defaults
        for part in name.split("."):
            value = getattr(value, part)
        table.add_row(name, Text(type_in_words(hint)), Text(str(value)))
    options = [table] if table.row_count else []
    return Group(Text(join_lines(doc)), Text(), *options, Text(), option_meanings(config_class))


def option_meanings(config_class: type) -> Group:
    """The meanings of options: the class's docstring, with the "Args" of it and of its bases as a table."""
    meanings = meanings_of(config_class)
    table = Table.grid(padding=(0, 2))
    for name, _ in option_types(config_class):
        if name in meanings:
            table.add_row(name, Text(meanings[name]))
    doc = inspect.cleandoc(config_class.__doc__ or "").partition("Args:\n")[0]
    return Group(Text(join_lines(doc)), Text(), table)


def meanings_of(config_class: type) -> dict[str, str]:
    """The meaning of each option, read from the "Args" of a class and of its bases."""
    meanings: dict[str, str] = {}
    for each in config_class.__mro__:
        arguments = inspect.cleandoc(each.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", arguments, re.M)
        meanings |= {name: " ".join(text.split()) for name, text in entries if name not in meanings}
    return meanings


def join_lines(text: str) -> str:
    """Join the lines of each paragraph, so that the terminal wraps them; indented lines stay."""
    lines = []
    for line in text.strip().splitlines():
        continues = (
            lines and lines[-1] and line and not line.startswith(" ") and not lines[-1].startswith(" ")
        )
        if continues:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines)


def example(shape: tuple[int, ...]) -> torch.Tensor:
    """An input of zeros, (1, *shape)."""
    return torch.zeros(1, *shape)
