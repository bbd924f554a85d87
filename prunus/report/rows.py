"""The before / pruned / recovered table, as plain rows of text that the terminal and the page both show."""

from dataclasses import dataclass, replace

from prunus.metrics import ACCURACY, Metric


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity: its name in words, and how it reads before, right after pruning, and after recovery."""

    label: str
    before: str
    pruned: str
    after: str
    change: str  # of `after` against `before`


def rows(result: dict) -> list[Row]:
    """The table of one result.json: costs first, then the metric."""
    before, after, pruned = result["before"], result["after"], result["pruned"]
    table = []
    for key, label, text in COSTS:
        if before.get(key) is not None and after.get(key) is not None:
            was, now = before[key], after[key]
            shrunk = text(now) if key in SAME_AFTER_RECOVERY else ""
            table.append(
                Row(label=label, before=text(was), pruned=shrunk, after=text(now), change=_times(was, now))
            )
    table += [*milliseconds(result), *zeros(result), *sizes(result)]
    metric = metric_of(result)
    was, now = before[metric.key], after[metric.key]
    table.append(
        Row(
            label=f"{metric.key} on the test set",
            before=metric.text(was),
            pruned=metric.text(pruned[metric.key]),
            after=metric.text(now),
            change=metric.change(was, now),
        )
    )
    return table


def metric_of(result: dict) -> Metric:
    """The metric that a result is judged by; results from before it was stored are of classification."""
    shown = result.get("metric_shown")
    return Metric(**shown) if shown else replace(ACCURACY, key=result["metric"])


def milliseconds(result: dict) -> list[Row]:
    """What was measured to keep a budget of milliseconds, in turns with the original."""
    if "latency" not in result:
        return []
    found = result["latency"]
    was, now = found["original_ms"], found["measured_ms"]
    label = f"milliseconds in {found['runtime']}, in turns"
    return [
        Row(
            label=label, before=f"{was:.3g}", pruned=f"{now:.3g}", after=f"{now:.3g}", change=_times(was, now)
        )
    ]


def kept(result: dict) -> str:
    """A sentence on how a budget of milliseconds was kept; empty for other budgets."""
    if "latency" not in result:
        return ""
    found = result["latency"]
    return (
        f"Kept, as measured on {found['threads']} thread{'s' * (found['threads'] > 1)} of {found['device']}: "
        f"{found['measured_ms']:.3g} ms of at most {found['limit_ms']:.3g}, {found['predicted_ms']:.3g} were "
        f"predicted. On {found['held_out']} random sub-networks that prediction was not fitted to: R2 "
        f"{found['r2']:.3f}, worst error {100 * found['worst_error']:.0f} %."
    )


def zeros(result: dict) -> list[Row]:
    """How many of the weights are zero, if single weights were pruned."""
    if "sparsity" not in result["after"]:
        return []
    was, pruned, now = (result[when]["sparsity"] for when in ("before", "pruned", "after"))
    change = f"{100 * (now - was):+.2f} points"
    label = "weights zero or gone"
    return [Row(label=label, before=percent(was), pruned=percent(pruned), after=percent(now), change=change)]


def sizes(result: dict) -> list[Row]:
    """What the weights would take as values and a bit each, next to the base's file; see masks.sizes_mb."""
    was = result["before"].get("file_mb")
    return [
        Row(label=label, before="", pruned="", after=f"{now:.3g}", change=_times(was, now))
        for key, label in SIZES.items()
        if (now := result["after"].get(key)) is not None
    ]


def proof(result: dict) -> str:
    """One line that says how far the smaller model is from the original with the removed units at zero."""
    verified = result["verified"]
    if verified.get("max_abs_error") is None:
        return "Not proved: the check was switched off."
    units = verified.get("units_gone")
    whole, more = "the original" if units is None else "the masked original", ""
    if units:
        more = (
            f" Nothing passed through {units} unit{'s' * (units > 1)}, so they are gone; the constants they added were "
            f"{verified['change_by_units']:.1e} of the largest answer."
        )
    return (
        f"Proved: the smaller model equals {whole} with the removed units at zero. Largest relative "
        f"difference of their answers {verified['max_abs_error']:.1e}, allowed {verified['tolerance']:.0e}.{more}"
    )


def budget(result: dict) -> str:
    """What was asked for in words, such as `macs <= 50 %`, `sparsity 80 %`."""
    ((name, limit),) = result["budget"].items()
    if name == "sparsity":
        return f"sparsity {100 * limit:g} %"
    return f"{name} <= {100 * limit:g} %" if limit <= 1 else f"{name} <= {limit:g}"


def count(number: float) -> str:
    """A large number for people: 41.1 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def percent(share: float) -> str:
    """A share as per cent: 92.30 %."""
    return f"{100 * share:.2f} %"


def _times(was: float, now: float) -> str:
    return f"{100 * now / was:.0f} %" if was else ""


COSTS = (
    ("macs", "multiply-adds for one input", count),
    ("params", "parameters", count),
    ("latency_ms", "milliseconds for one input", lambda ms: f"{ms:.2f}"),
    ("memory_mb", "peak activations, MB", lambda mb: f"{mb:.3g}"),
    ("file_mb", "file size, MB", lambda mb: f"{mb:.3g}"),
)
SIZES = {
    "packed_mb": "if packed, MB",
    "compressed_mb": "if packed and zipped, MB",
}
SAME_AFTER_RECOVERY = {"macs", "params", "memory_mb"}
