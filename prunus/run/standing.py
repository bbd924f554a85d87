"""compare.json: what the arms of a comparison came to, one by one, and as mean and spread over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prunus.latency import milliseconds
from prunus.machine import versions
from prunus.metrics import Metric
from prunus.run.arms import RUNS, Arm

Figures = dict[str, float | None]
BASE, AGAIN = (
    "base",
    "base again",
)  # the names of the unpruned network and of a second copy of it among the arms


def make_standing(
    arms: Sequence[Arm],
    results: Mapping[str, dict[str, Any]],
    failed: Mapping[str, str],
    latency: Mapping[str, milliseconds.Latency],
) -> dict[str, Any]:
    """Return the contents of compare.json.

    Args:
        arms: The arms.
        results: The result.json of each arm that is finished, by its name.
        failed: Why others failed, by their names.
        latency: The milliseconds of the finished arms, measured side by side, and of the base, by their names.

    Returns:
        Plain JSON. arms: the figures of each. rows: for each method and limit mean and standard deviation of each
        figure over its seeds, and of its difference to the first method with the same limit and seeds.
    """
    first = next(iter(results.values()))
    metric = Metric(**first["metric_shown"])
    rows = [
        {
            "name": arm.name,
            "method": arm.label,
            "limit": arm.limit.limits,
            "seed": arm.seed,
            "folder": f"{RUNS}/{arm.name}",
            "failed": failed.get(arm.name),
            "figures": figures_of(arm, results[arm.name], metric, latency) if arm.name in results else None,
        }
        for arm in arms
    ]
    return {
        "format": 1,
        "model": first["settings"]["model"],
        "data": first["settings"]["data"],
        "total_epochs": first["settings"]["total_epochs"],
        "seeds": list(dict.fromkeys(arm.seed for arm in arms)),
        "metric_shown": asdict(metric),
        "judged_on": first["judged_on"],
        "base": base_figures(results, metric, latency),
        "arms": rows,
        "rows": summarise(rows),
        "versions": versions(),
        "machine": first["machine"],
    }


def figures_of(
    arm: Arm, result: dict[str, Any], metric: Metric, latency: Mapping[str, milliseconds.Latency]
) -> Figures:
    """Return the figures of a finished arm: the metric at each stage, the costs, and the epochs that it was trained."""
    before, after = result["before"], result["after"]
    recovery = result["settings"]["recovery"]["epochs"]
    return {
        "as_cut": result["pruned"][metric.key],
        "repaired": repaired_metric(result, metric),
        "recovered": after[metric.key],
        "macs": after["macs"],
        "macs_share": after["macs"] / before["macs"],
        "params": after["params"],
        "params_share": after["params"] / before["params"],
        "sparsity": after.get("sparsity"),
        "latency_ms": latency[arm.name].median_ms,
        "latency_spread_ms": latency[arm.name].spread_ms,
        "search_epochs": max(0.0, result["settings"]["total_epochs"] - recovery),
        "recovery_epochs": recovery,
    }


def repaired_metric(result: dict[str, Any], metric: Metric) -> float | None:
    """Return the metric of the model that recovery began with; None for runs without a stage that repairs."""
    if "repaired" not in result:
        return None
    return result["repaired"].get("test", result["pruned"])[metric.key]


def base_figures(
    results: Mapping[str, dict[str, Any]], metric: Metric, latency: Mapping[str, milliseconds.Latency]
) -> dict[str, Any]:
    """Return the figures of the unpruned network: mean and spread over the seeds, each of which has a base."""
    of_seeds = {result["seed"]: result["before"] for result in results.values()}.values()
    found = {name: next(iter(of_seeds))[name] for name in ("macs", "params")}
    return {
        **found,
        "latency_ms": latency[BASE].median_ms,
        "latency_spread_ms": latency[BASE].spread_ms,
        "again_latency_ms": latency[AGAIN].median_ms,
        "metric": mean_and_spread([each[metric.key] for each in of_seeds]),
    }


def summarise(arms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summarise the arms over their seeds: a row for each limit and method, in the order of the arms."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for arm in arms:
        groups.setdefault((str(arm["limit"]), arm["method"]), []).append(arm)
    rows: list[dict[str, Any]] = []
    firsts: dict[str, dict[int, float | None]] = {}  # by limit: what the first method came to with each seed
    for (limit, method), group in groups.items():
        there = [arm for arm in group if arm["figures"]]
        recovered = {arm["seed"]: arm["figures"]["recovered"] for arm in there}
        first = firsts.setdefault(limit, recovered)
        names = there[0]["figures"] if there else ()
        gains = [
            None if value is None or first[seed] is None else value - first[seed]
            for seed, value in recovered.items()
            if seed in first
        ]
        rows.append(
            {
                "method": method,
                "limit": group[0]["limit"],
                "seeds": len(there),
                "asked": len(group),
                **{name: mean_and_spread([arm["figures"][name] for arm in there]) for name in names},
                "gain": None if first is recovered else mean_and_spread(gains),
            }
        )
    return rows


def mean_and_spread(values: Sequence[float | None]) -> list[float | None] | None:
    """Return the mean and the standard deviation, None for that of a single value; None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return [statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None]
