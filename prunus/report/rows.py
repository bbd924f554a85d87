"""The table of before, pruned and recovered, as rows of plain text for the terminal and the page."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from prunus.metrics import ACCURACY, Metric, format_number


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity as text.

    Args:
        label: Its name in words.
        before: Its value before pruning.
        pruned: Its value right after pruning; empty if it is not measured there.
        after: Its value after recovery.
        change: The change from `before` to `after`.
        repaired: Its value after repair; empty if it is not measured there.
    """

    label: str
    before: str
    pruned: str
    repaired: str = ""
    after: str
    change: str


def rows(result: dict[str, Any]) -> list[Row]:
    """Make the rows of one result.json: costs first, then the metric."""
    before, after, pruned = result["before"], result["after"], result["pruned"]
    repaired = result.get("repaired", {}).get("test")
    table: list[Row] = []
    for key, label, text in COSTS:
        if before.get(key) is not None and after.get(key) is not None:
            was, now = before[key], after[key]
            shrunk = text(now) if key in SAME_AFTER_RECOVERY else ""
            table.append(
                Row(
                    label=label,
                    before=text(was),
                    pruned=shrunk,
                    repaired=shrunk,
                    after=text(now),
                    change=_times(was, now),
                )
            )
    table += [*latency_rows(result), *sparsity_rows(result), *size_rows(result)]
    for metric in (metric_of(result), *(Metric(**each) for each in result.get("further_metrics", []))):
        was, now = before[metric.key], after[metric.key]
        table.append(
            Row(
                label=f"{metric.key} on {judged_on(result)}",
                before=metric.text(was),
                pruned=metric.text(pruned[metric.key]),
                repaired=metric.text(repaired[metric.key]) if repaired else "",
                after=metric.text(now),
                change=metric.change(was, now),
            )
        )
    return [*table, *int8_rows(result)]


def judged_on(result: dict[str, Any]) -> str:
    """Return in words which examples the metric is of: the test set, or val for data without one."""
    return "val (there is no test set)" if result.get("judged_on") == "val" else "the test set"


def metric_of(result: dict[str, Any]) -> Metric:
    """Return the metric of a result; results of earlier versions, which do not store it, are of classification."""
    shown = result.get("metric_shown")
    return Metric(**shown) if shown else replace(ACCURACY, key=result["metric"])


def columns(result: dict[str, Any]) -> dict[str, str]:
    """Return the columns of the table: the fields of `Row` with their headings."""
    is_repaired = result.get("repaired", {}).get("kept") == "repaired"
    return {
        "label": "",
        "before": "before",
        "pruned": "as cut" if is_repaired else "pruned",
        **({"repaired": "repaired"} if is_repaired else {}),
        "after": "recovered",
        "change": "of before",
    }


def repair_sentence(result: dict[str, Any]) -> str:
    """Say what the repair of the pruned model gained, and which model was kept; empty where nothing was repaired."""
    if "repaired" not in result:
        return ""
    found, metric = result["repaired"], metric_of(result)
    if "refused" in found:
        return f"Not repaired: {found['refused']} The model was kept as it was cut."
    cut, repaired = (metric.text(found["on_val"][name]) for name in ("cut", "repaired"))
    before, after = (f"{100 * share:.3g} %" for share in found["unexplained"])
    left = f", and {len(found['left'])} left" if found["left"] else ""
    better = "the repaired model was kept" if found["kept"] == "repaired" else "the model as cut was kept"
    return (
        f"Repaired without labels: {found['layers']} layers fitted to {found['examples']} examples{left}; on average "
        f"{after} of a layer's output is left unexplained, {before} as cut. On val {repaired}; with renewed norms "
        f"alone {cut}; {better}."
    )


def recovery_sentence(result: dict[str, Any]) -> str:
    """Say what the fine-tuning gained on val, and whether it was kept; empty where nothing was trained."""
    if "recovered" not in result:
        return ""
    found, metric = result["recovered"], metric_of(result)
    start, end = (metric.text(found["on_val"][name]) for name in ("start", "end"))
    if found["kept"] == "start":
        return f"Fine-tuning made it worse on val, {end} after {start}, so the model before it was kept."
    return f"Fine-tuned: on val {start} before it, {end} after it."


def int8_rows(result: dict[str, Any]) -> list[Row]:
    """Make the row of the metric in 8 bits, of the dense model and of the pruned one, if they were quantised."""
    if "int8" not in result:
        return []
    metric, found = metric_of(result), result["int8"]
    now, dense = found["after"][metric.key], found["before"]
    return [
        Row(
            label=f"{metric.key} in 8 bits",
            before=metric.text(dense[metric.key]) if dense else "",
            pruned="",
            after=metric.text(now),
            change=metric.change(dense[metric.key], now) if dense else "",
        )
    ]


def int8_sentence(result: dict[str, Any]) -> str:
    """Say how good the pruned model is in 8 bits, beside 32 bits and the dense one; empty if it was not quantised."""
    if "int8" not in result:
        return ""
    metric, found = metric_of(result), result["int8"]
    now, whole = (metric.text(each[metric.key]) for each in (found["after"], result["after"]))
    line = f"In 8 bits: {metric.key} {now} on {judged_on(result)}, {whole} in 32 bits"
    if found["before"]:
        now, whole = (metric.text(each[metric.key]) for each in (found["before"], result["before"]))
        line += f"; the dense model {now} and {whole}"
    return f"{line}. Ranges were measured on {found['examples']} training examples."


def latency_rows(result: dict[str, Any]) -> list[Row]:
    """Make the row of a budget of milliseconds: original and smaller model, measured in turns."""
    if "latency" not in result:
        return []
    found = result["latency"]
    was, now = found["original_ms"], found["measured_ms"]
    label = f"milliseconds in {found['runtime']}, in turns"
    return [
        Row(
            label=label,
            before=f"{was:.3g}",
            pruned=f"{now:.3g}",
            repaired=f"{now:.3g}",
            after=f"{now:.3g}",
            change=_times(was, now),
        )
    ]


def latency_sentence(result: dict[str, Any]) -> str:
    """Say how a budget of milliseconds was met; empty for other budgets."""
    if "latency" not in result:
        return ""
    found = result["latency"]
    return (
        f"Met, as measured on {found['threads']} thread{'s' * (found['threads'] > 1)} of {found['device']}: "
        f"{found['measured_ms']:.3g} ms of at most {found['limit_ms']:.3g}; the prediction was "
        f"{found['predicted_ms']:.3g}. On {found['held_out']} random sub-networks to which it was not fitted: R2 "
        f"{found['r2']:.3f}, worst error {100 * found['worst_error']:.0f} %."
    )


def sparsity_rows(result: dict[str, Any]) -> list[Row]:
    """Make the row of the share of zeros, if single weights were pruned."""
    if "sparsity" not in result["after"]:
        return []
    was, pruned, now = (result[when]["sparsity"] for when in ("before", "pruned", "after"))
    change = f"{100 * (now - was):+.2f} points"
    label = "weights zero or removed"
    return [Row(label=label, before=percent(was), pruned=percent(pruned), after=percent(now), change=change)]


def size_rows(result: dict[str, Any]) -> list[Row]:
    """Make the rows of the weights' packed size, beside the base's file; see sparse/masks.py, sizes_mb."""
    was = result["before"].get("file_mb")
    return [
        Row(label=label, before="", pruned="", after=f"{now:.3g}", change=_times(was, now))
        for key, label in SIZES.items()
        if (now := result["after"].get(key)) is not None
    ]


def proof_sentence(result: dict[str, Any]) -> str:
    """Say how much the outputs of the smaller model and of the original with the removed units at zero differ."""
    verified = result["verified"]
    if verified.get("max_abs_error") is None:
        return "Not proved: the check was switched off."
    units = verified.get("units_gone")
    whole, more = "the original" if units is None else "the masked original", ""
    if units:
        more = (
            f" Nothing passed through {units} unit{'s' * (units > 1)}, so they are removed; the constants they added "
            f"were {verified['change_by_units']:.1e} of the largest output."
        )
    return (
        f"Proved: the smaller model equals {whole} with the removed units at zero. Largest relative "
        f"difference of their outputs {verified['max_abs_error']:.1e}, allowed {verified['tolerance']:.0e}.{more}"
    )


def data_sentence(result: dict[str, Any]) -> str:
    """Say how many examples were found and used, and why others were not; empty for results of version 0.1.0.

    Without a test set it says that the choices were made on the examples that the metric is of.
    """
    if "data" not in result:
        return ""
    data = result["data"]
    tokens = data.get("tokens")  # how texts were read
    things = "examples" if data.get("classes", 0) is None or tokens else "images"
    counts = ", ".join(f"{name} {part['images']}" for name, part in data["splits"].items())
    skipped = ", ".join(f"{count} {reason}" for reason, count in data["skipped"].items())
    out = f"; left out: {skipped}." if skipped else "."
    if tokens:
        out += f" Texts were read as {tokens}."
    if result.get("judged_on") == "val":
        out += (
            " There is no test set: the metric is of val, on which choices were made, and may look too good."
        )
    return f"Data: {data['found']} {things} found, {data['used']} used ({counts}){out}"


def budget_text(result: dict[str, Any]) -> str:
    """Return the limit as text, such as `macs <= 50 %` or `sparsity 80 %`."""
    limits = result["budget"]
    if "sparsity" in limits:
        return f"sparsity {100 * limits['sparsity']:g} %"
    return ", ".join(
        f"{name} <= {100 * limit:g} %" if limit <= 1 else f"{name} <= {limit:g}"
        for name, limit in limits.items()
    )


def percent(share: float) -> str:
    """Return a share as per cent, such as 92.30 %."""
    return f"{100 * share:.2f} %"


def _times(was: float, now: float) -> str:
    return f"{100 * now / was:.0f} %" if was else ""


COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("macs", "multiply-adds for one input", partial(format_number, digits=3)),
    ("params", "parameters", partial(format_number, digits=3)),
    ("latency_ms", "milliseconds for one input", lambda ms: f"{ms:.2f}"),
    ("memory_mb", "peak activations, MB", lambda mb: f"{mb:.3g}"),
    ("weights_mb", "weights, MB", lambda mb: f"{mb:.3g}"),
    ("cache_mb", "keys and values, MB", lambda mb: f"{mb:.3g}"),
    ("file_mb", "file size, MB", lambda mb: f"{mb:.3g}"),
)
SIZES = {
    "packed_mb": "if packed, MB",
    "compressed_mb": "if packed and zipped, MB",
}
SAME_AFTER_RECOVERY = {"macs", "params", "memory_mb", "weights_mb", "cache_mb"}
