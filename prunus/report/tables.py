"""Tables for the terminal."""

import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from prunus.report.rows import (
    budget_text,
    columns,
    data_sentence,
    int8_sentence,
    latency_sentence,
    metric_of,
    proof_sentence,
    recovery_sentence,
    repair_sentence,
    rows,
)


def summary(result: dict[str, Any]) -> Group:
    """Make the table of one run, and below it a line each on the proof, repair, recovery, 8 bits, latency and data.

    Args:
        result: The run's result.json.

    Returns:
        A renderable for rich's console.
    """
    table = Table(title=Text(f"{result['method']}, {budget_text(result)}"), title_justify="left")
    shown = columns(result)
    for heading in shown.values():
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows(result):
        table.add_row(*(Text(getattr(row, name)) for name in shown))
    sentences = (
        *(proof_sentence, repair_sentence, recovery_sentence),
        *(int8_sentence, latency_sentence, data_sentence),
    )
    lines = [say(result) for say in sentences]
    return Group(table, *(Text(line) for line in lines if line))


def comparison(results: Mapping[str, dict[str, Any]]) -> Group:
    """Make a table of runs side by side.

    Runs that differ only in their seed are followed by their mean and spread; copies of a run are named, and count
    once. If some runs set weights to zero, the
    share of zeros replaces parameters and milliseconds, because `prunus bench` measures what zeros save.

    Args:
        results: label, such as the folder -> result.json.

    Returns:
        A renderable for rich's console.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold", min_width=12)
    sparse = any("sparsity" in result["after"] for result in results.values())
    for heading in ("method", "budget"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seed", "macs", *(["zeros"] if sparse else ["params", "ms"]), "before", "after"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, result in results.items():
        table.add_row(*map(Text, _cells(label, result, sparse)))
    copies = find_copies(results)
    own = [result for label, result in results.items() if label not in copies]
    return Group(table, *map(Text, [*copies.values(), *_means(own)]))


def find_copies(results: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Find the results of copies of one folder: runs of the same settings that share the very seconds of a stage.

    Args:
        results: label, such as the folder -> result.json.

    Returns:
        By the label of each copy, a sentence that says which earlier one it is a copy of.
    """
    found: dict[str, str] = {}
    labels = list(results)
    for number, label in enumerate(labels):
        for earlier in labels[:number]:
            one, other = results[earlier], results[label]
            shared = [stage for stage, took in one["seconds"].items() if other["seconds"].get(stage) == took]
            if shared and one["settings"] == other["settings"] and label not in found:
                stages = f"stage{'s' * (len(shared) > 1)} {', '.join(shared)}"
                found[label] = (
                    f"{label} is a copy of {earlier}: {stages} ran once for both. They count as one run."
                )
    return found


def bench_table(record: dict[str, Any]) -> Table:
    """Make a table of bench.json: the milliseconds of every program with either model, and the share of the base's.

    Args:
        record: The contents of bench.json.

    Returns:
        A renderable for rich's console.
    """
    table = Table(title="milliseconds, medians of rounds in turn", title_justify="left")
    table.add_column("program, model")
    batches = list(record["rows"])
    for batch in batches:
        table.add_column("one input" if batch == "1" else f"batch of {batch}", justify="right")
        table.add_column("of base", justify="right")
    for name in record["rows"][batches[0]]:
        cells: list[str] = []
        for batch in batches:
            row = record["rows"][batch][name]
            cells += [
                f"{row['median_ms']:.3g}",
                f"{row['of_base']['median']:.2f}" if "of_base" in row else "",
            ]
        table.add_row(*map(Text, (name, *cells)))
    return table


def _cells(label: str, result: dict[str, Any], sparse: bool) -> list[str]:
    before, after, metric = result["before"], result["after"], metric_of(result)
    own = [f"{100 * after['params'] / before['params']:.0f} %", f"{after['latency_ms']:.2f}"]
    if sparse:
        own = [f"{100 * after['sparsity']:.4g} %" if "sparsity" in after else ""]
    return [
        label,
        result["method"],
        budget_text(result).replace(" ", "").replace("sparsity", "zeros="),
        str(result["seed"]),
        f"{100 * after['macs'] / before['macs']:.0f} %",
        *own,
        metric.text(before[metric.key]),
        metric.text(after[metric.key]),
    ]


def _means(results: list[dict[str, Any]]) -> list[str]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        settings = result["settings"].items()
        asked = {key: value for key, value in settings if key not in ("seed", "threads")}
        groups.setdefault(json.dumps(asked, sort_keys=True), []).append(result)
    lines: list[str] = []
    for group in groups.values():
        if len(group) > 1:
            metric = metric_of(group[0])
            values = [result["after"][metric.key] for result in group]
            if None in values:
                continue
            mean = sum(values) / len(values)
            spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
            lines.append(
                f"{group[0]['method']}, {budget_text(group[0])}: {metric.key} {metric.text(mean)} on average over "
                f"{_count_runs(group)}, standard deviation {metric.spread(spread)}"
            )
    return lines


def _count_runs(group: list[dict[str, Any]]) -> str:
    seeds = len({result["seed"] for result in group})
    return (
        f"{seeds} seeds" if seeds == len(group) else f"{len(group)} runs of {seeds} seed{'s' * (seeds > 1)}"
    )
