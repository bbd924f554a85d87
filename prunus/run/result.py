"""result.json, made from the records of the stages."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from prunus.machine import machine, versions
from prunus.run.provenance import fingerprint_of
from prunus.run.records import check_records, read_int8
from prunus.run.reopen import describe_example
from prunus.run.stages import Pipeline


def make_result(pipeline: Pipeline, records: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the contents of result.json. records: the record of every stage, by its name.

    Raises FileError if a record is damaged, or a file of the result has changed since its stage wrote it.
    """
    metric = pipeline.task.metric
    check_records(pipeline.run.path, records, metric.key)
    built_with = {name: value for name, value in pipeline.task.asked_of_model().items() if name != "in_shape"}
    base, shrink, evaluate = records["base"], records["shrink"], records["evaluate"]
    weights = {key: evaluate[key] for key in ("survivors", "left_dense") if key in evaluate}
    repaired = {"repaired": records["repair"]["repaired"]} if "repair" in records else {}
    repaired |= {key: records["recover"][key] for key in ("recovered",) if key in records["recover"]}
    timed = {key: records["prune"][key] for key in ("latency",) if key in records["prune"]}
    return {
        "method": pipeline.method.name,
        "seed": pipeline.run.seed,
        "budget": pipeline.budget.limits,
        "metric": metric.key,
        "metric_shown": asdict(metric),
        "further_metrics": [asdict(each) for each in pipeline.task.further_metrics],
        "input": describe_example(pipeline.task.example) | built_with,
        "conventions": pipeline.task.conventions(),
        "judged_on": "val" if pipeline.task.data.test is None else "test",
        "data": fingerprint_of(pipeline.task.data).summary(),
        "before": evaluate["before"] | base["test"],
        "pruned": shrink["test"],
        **repaired,
        "after": evaluate["after"] | evaluate["test"],
        "verified": shrink["verified"],
        "widths": evaluate["widths"],
        **weights,
        **timed,
        **read_int8(pipeline.run.path),
        "charts": records["prune"].get("charts", []),  # folders of earlier versions have none
        "examples": evaluate.get("examples", []),
        "history": {"base": base["history"], "recover": records["recover"]["history"]},
        "seconds": {name: record["seconds"] for name, record in records.items()},
        "versions": versions(),
        "machine": machine(pipeline.run.device, pipeline.run.processes.num_processes),
        "environments": pipeline.run.environments,
        "settings": pipeline.run.settings
        | {"config": asdict(pipeline.config), "base": asdict(pipeline.base_recipe)}
        | {"recovery": asdict(pipeline.plan_recovery())},
    }
