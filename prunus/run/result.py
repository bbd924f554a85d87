"""result.json, made from what the stages found."""

from dataclasses import asdict

from prunus.machine import machine, versions
from prunus.run.stages import Work


def result_of(work: Work, records: dict[str, dict]) -> dict:
    """result.json, from what the stages found."""
    metric = work.task.metric
    built_with = {name: value for name, value in work.task.asked_of_model().items() if name != "in_shape"}
    base, shrink, evaluate = records["base"], records["shrink"], records["evaluate"]
    weights = {key: evaluate[key] for key in ("survivors", "left_dense") if key in evaluate}
    timed = {key: records["prune"][key] for key in ("latency",) if key in records["prune"]}
    return {
        "method": work.method.name,
        "seed": work.run.seed,
        "budget": {work.budget.name: work.budget.value},
        "metric": metric.key,
        "metric_shown": asdict(metric),
        "input": {"shape": list(work.task.example.shape[1:])} | built_with,
        "before": evaluate["before"] | base["test"],
        "pruned": shrink["test"],
        "after": evaluate["after"] | evaluate["test"],
        "verified": shrink["verified"],
        "widths": evaluate["widths"],
        **weights,
        **timed,
        "charts": records["prune"].get("charts", []),  # folders from before there were any have none
        "history": {"base": base["history"], "recover": records["recover"]["history"]},
        "seconds": {name: record["seconds"] for name, record in records.items()},
        "versions": versions(),
        "machine": machine(work.run.processes.device, work.run.processes.num_processes),
        "settings": work.run.asked
        | {"config": asdict(work.config), "base": asdict(work.base_recipe)}
        | {"recovery": asdict(work.recovery_recipe)},
    }
