"""What a search found, in the log and in pictures."""

from collections.abc import Iterator
from dataclasses import asdict

from prunus.charts import Bars, Chart, Lines, Points
from prunus.metrics import format_number
from prunus.search.engine import Result
from prunus.search.journal import Candidate
from prunus.search.space import Space
from prunus.selection import Budget

NAMES = {"uniform": "uniform", "seed": "by scores alone"}  # of networks that were not found by the search


def note(found: Result, run) -> None:
    """The search in the log."""
    for generation in found.history:
        run.log("generation", **asdict(generation))
    uniform = found.uniform and found.uniform.score
    run.log(
        "searched",
        networks=len(found.candidates),
        missing=found.missing,
        winner=found.winner.plain(),
        best_score=found.best.score,
        uniform_score=uniform,
    )


def learned(history: list[dict], metric: str) -> Iterator[Chart]:
    """The training of a supernet, if there was one."""
    if history:
        yield Lines(
            title="The supernet's training",
            note="After each epoch: the uniform network at the budget, its norms renewed, on val.",
            x_label="epoch",
            y_label=metric,
            series={"uniform network": [(row["epoch"], row[metric]) for row in history]},
        )


def drawn(found: Result, budget: Budget, space: Space, metric: str) -> Iterator[Chart]:
    """The search in pictures: every network, how it went on, who was compared once more, what came of it.

    metric: what scores are, in words.
    """
    measured = budget.name == "latency_ms"
    as_searched = {_key(each): each for each in found.candidates}
    groups: dict[str, list] = {}
    for each in found.candidates:
        group = NAMES.get(each.origin, each.origin) if each.complete else "dropped early"
        groups.setdefault(group, []).append(_point(each, found.before))
    groups["winner"] = [_point(as_searched[_key(found.winner)], found.before)]
    yield Points(
        title="Networks that were tried",
        note="Each as it was, nothing trained, on the pictures searched on. The line runs through the best for their "
        "cost within the budget." + (" Costs are as predicted." if measured else ""),
        x_label=f"{budget.name}, share of before",
        y_label=f"{metric} in the search",
        groups=groups,
        front=[(each.cost / found.before, each.score) for each in found.front],
    )
    yield Lines(
        title="How the search went on",
        note="The mean is over all networks of a generation, also those dropped early. Dashed: the uniform network.",
        x_label="generation",
        y_label=f"{metric} in the search",
        series={
            "best so far": [(each.number, each.best) for each in found.history],
            "mean": [(each.number, each.mean) for each in found.history],
        },
        references={
            "uniform": [(each.number, found.uniform.score) for each in found.history] if found.uniform else []
        },
    )
    if found.path:
        yield Lines(
            title="The way down",
            note="From the whole network on, each time by the step that lost least for what it saved.",
            x_label=f"{budget.name}, share of before",
            y_label=f"{metric} in the search",
            series={"networks gone through": [(each.cost / found.before, each.score) for each in found.path]},
        )
    before = [as_searched[_key(each)].score for each in found.confirmed]
    after = [each.score for each in found.confirmed]
    if before != after:
        yield Bars(
            title="The last few, compared once more",
            note="On pictures that chose nothing; the best of these wins. What chose a network flatters it, so most "
            "lose something.",
            labels=[_named(each) for each in found.confirmed],
            value_label=metric,
            series={"in the search": before, "once more": after},
        )
    networks = {"winner": found.winner} | ({"uniform": found.uniform} if found.uniform else {})
    sizes = {name: space.graph.axes[name].size for name in space.names}
    yield Bars(
        title="Widths of the winner",
        note="The share of each axis that stays, beside the uniform network's.",
        labels=list(sizes),
        value_label="share kept",
        series={
            name: [network.widths[axis] / size for axis, size in sizes.items()]
            for name, network in networks.items()
        },
    )


def _key(network: Candidate) -> tuple[int, ...]:
    return tuple(network.widths.values())


def _named(network: Candidate) -> str:
    """How it came about."""
    name = NAMES.get(network.origin, network.origin)
    return name if network.origin in NAMES else f"{name}, gen. {network.generation}"


def _point(network: Candidate, before: float) -> tuple[float, float, str]:
    """Cost and score, and both in words."""
    on = f" on {network.images} pictures" if network.images else ""
    text = f"{network.score:.4g}{on}, cost {format_number(network.cost)}\n{_named(network)}"
    return network.cost / before, network.score, text
