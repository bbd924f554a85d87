"""What a search found, in the log and in pictures."""

from collections.abc import Iterator
from dataclasses import asdict

from prunus.budget import Budget
from prunus.charts import Bars, Chart, Lines, Points
from prunus.search import Result, Space


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


def drawn(found: Result, budget: Budget, space: Space) -> Iterator[Chart]:
    """The search in pictures: every network, how it went on, what came of it."""
    groups: dict[str, list] = {}
    for each in found.candidates:
        label = f"{each.origin}, generation {each.generation}, {each.images} pictures"
        group = each.origin if each.complete else "dropped early"
        groups.setdefault(group, []).append((each.cost / found.before, each.score, label))
    yield Points(
        title="Networks that were tried",
        note="Each as it was, nothing trained. The line runs through the best for their cost within the budget.",
        x_label=f"{budget.name}, share of before",
        y_label="score on the pictures searched on",
        groups=groups,
        front=[(each.cost / found.before, each.score) for each in found.front],
    )
    yield Lines(
        title="How the search went on",
        note="The mean is over all networks of a generation, also those dropped early. Dashed: the uniform network.",
        x_label="generation",
        y_label="score",
        series={
            "best so far": [(each.number, each.best) for each in found.history],
            "mean": [(each.number, each.mean) for each in found.history],
        },
        references={
            "uniform": [(each.number, found.uniform.score) for each in found.history] if found.uniform else []
        },
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
