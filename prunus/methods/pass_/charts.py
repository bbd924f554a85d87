"""The charts of a PASS search."""

from collections.abc import Iterator

from prunus.charts import Chart, Heat, Lines, Picture
from prunus.methods.pass_.search import PASS

HEALTHY = 0.005, 0.02  # of all units whose masks change in a step: more than the second is flicker


def drawn(search: PASS) -> Iterator[Chart]:
    """The search in pictures: the widths, how restless the masks were, the snapshots, the prompt."""
    units = len(search.kept)
    if search.records:
        sizes = [search.graph.axes[name].size for name in search.names]
        yield Heat(
            title="What stays of each axis",
            note="The share of its units within the budget at that time: the darker, the more. Axes stand in the order "
            "in which the network computes them.",
            rows=search.names,
            x=[record["step"] for record in search.records],
            x_label="step",
            values=[
                [record["widths"][row] / size for record in search.records] for row, size in enumerate(sizes)
            ],
            value_label="kept",
        )
    if search.flips:
        yield Lines(
            title="Masks that changed in a step",
            note=f"Of {units} units. Dashed: below the first line all is well, above the second the search flickers: "
            "lower the learning rate.",
            x_label="step",
            y_label="units",
            series={"changed": list(enumerate(search.flips))},
            references={
                f"{share:.1%}": [(0, share * units), (len(search.flips), share * units)] for share in HEALTHY
            },
        )
    if search.tried:
        yield Lines(
            title="The network as it would be then",
            note="Its loss on training pictures held out, in the widths that would be taken, without prompt, norms on "
            "the statistics of the batch. The lowest is taken. Step 0 is what the search began with: pruning by "
            "magnitude, if no option says otherwise.",
            x_label="step",
            y_label="loss",
            series={"held out": [(step, -score) for step, score in search.tried]},
        )
    if search.prompt:
        yield Picture(
            title="The prompt",
            note="What was added to every picture in the search; gray is zero.",
            png=search.prompt.png(),
        )
