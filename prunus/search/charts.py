"""The log events and the charts of a search."""

from collections.abc import Iterator
from dataclasses import asdict

from prunus.charts import Bars, Chart, Lines, Points
from prunus.metrics import format_number
from prunus.search.engine import Result
from prunus.search.journal import Candidate
from prunus.search.space import Space
from prunus.selection import Budget

NAMES = {
    "uniform": "uniform",
    "seed": "by scores alone",
}  # labels of networks that the search did not find itself


def log_search(found: Result, run) -> None:
    """Write the generations of a search, and its outcome, to the log of a run."""
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


def training_charts(history: list[dict], metric: str) -> Iterator[Chart]:
    """The chart of a supernet's training, if there was one."""
    if history:
        yield Lines(
            title="The supernet's training",
            note="After each epoch: the uniform network at the budget, with renewed norms, on val.",
            x_label="epoch",
            y_label=metric,
            series={"uniform network": [(row["epoch"], row[metric]) for row in history]},
        )


def search_charts(found: Result, budget: Budget, space: Space, metric: str) -> Iterator[Chart]:
    """The charts of a search: all networks, its progress, the finalists, the winner's widths.

    Args:
        found: The result of the search.
        budget: Its budget.
        space: Its space.
        metric: The name of the scores.

    Yields:
        The charts.
    """
    measured = "latency_ms" in budget.limits
    as_searched = {_key(each): each for each in found.candidates}
    groups: dict[str, list] = {}
    for each in found.candidates:
        group = NAMES.get(each.origin, each.origin) if each.complete else "dropped early"
        groups.setdefault(group, []).append(_point(each, found.before))
    groups["winner"] = [_point(as_searched[_key(found.winner)], found.before)]
    yield Points(
        title="Evaluated networks",
        note="Each without training, on the images of the search. The line connects the best networks for their cost "
        "within the budget." + (" Costs are predicted." if measured else ""),
        x_label=f"{budget.name}, share of the original",
        y_label=f"{metric} in the search",
        groups=groups,
        front=[(each.cost / found.before, each.score) for each in found.front],
    )
    yield Lines(
        title="Progress of the search",
        note="The mean is over all networks of a generation, including those dropped early. Dashed: the uniform "
        "network.",
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
            title="The greedy path",
            note="From the whole network on, each time by the step with the least loss per saved cost.",
            x_label=f"{budget.name}, share of the original",
            y_label=f"{metric} in the search",
            series={"networks on the path": [(each.cost / found.before, each.score) for each in found.path]},
        )
    before = [as_searched[_key(each)].score for each in found.confirmed]
    after = [each.score for each in found.confirmed]
    if before != after:
        yield Bars(
            title="The finalists, compared again",
            note="On images that were not used for selection; the best of these wins. The score that selected a "
            "network is biased in its favour, so most scores fall.",
            labels=[_name(each) for each in found.confirmed],
            value_label=metric,
            series={"in the search": before, "on other images": after},
        )
    networks = {"winner": found.winner} | ({"uniform": found.uniform} if found.uniform else {})
    sizes = {name: space.graph.axes[name].size for name in space.names}
    yield Bars(
        title="Widths of the winner",
        note="The share of each axis that is kept, next to the uniform network's.",
        labels=list(sizes),
        value_label="share kept",
        series={
            name: [network.widths[axis] / size for axis, size in sizes.items()]
            for name, network in networks.items()
        },
    )


def _key(network: Candidate) -> tuple[int, ...]:
    return tuple(network.widths.values())


def _name(network: Candidate) -> str:
    """The label of a network: its origin, with the generation for networks that the search found."""
    name = NAMES.get(network.origin, network.origin)
    return name if network.origin in NAMES else f"{name}, gen. {network.generation}"


def _point(network: Candidate, before: float) -> tuple[float, float, str]:
    """The cost (as a share of `before`), the score, and a text with both."""
    on = f" on {network.images} images" if network.images else ""
    text = f"{network.score:.4g}{on}, cost {format_number(network.cost)}\n{_name(network)}"
    return network.cost / before, network.score, text
