"""The charts of a PASS search."""

from collections.abc import Iterator

from prunus.charts import Chart, Heat, Lines, Picture
from prunus.methods.pass_.search import PASS

HEALTHY = 0.005, 0.02  # shares of all units whose masks change in a step: above the second, masks flicker


def charts(search: PASS) -> Iterator[Chart]:
    """The charts of a search: the widths, the changes of the masks, the snapshots, the prompt."""
    units = len(search.kept)
    if search.records:
        sizes = [search.graph.axes[name].size for name in search.names]
        yield Heat(
            title="Kept share of each axis",
            note="The share of its units that is kept at each step: the darker, the more. Axes are in the order in "
            "which the network computes them.",
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
            note=f"Out of {units} units. Dashed: below the first line the search is stable, above the second the masks "
            "flicker: lower the learning rate.",
            x_label="step",
            y_label="units",
            series={"changed": list(enumerate(search.flips))},
            references={
                f"{share:.1%}": [(0, share * units), (len(search.flips), share * units)] for share in HEALTHY
            },
        )
    if search.tried:
        yield Lines(
            title="Snapshots",
            note="The loss, on held-out training images, of the network as it would be returned at that step: in whole "
            "blocks, without prompt, norms with the statistics of the batch. The lowest is taken. Step 0 is the start: "
            "pruning by magnitude, unless an option says otherwise.",
            x_label="step",
            y_label="loss",
            series={"held out": [(step, -score) for step, score in search.tried]},
        )
    if search.prompt:
        yield Picture(
            title="The prompt",
            note="It was added to every image in the search; gray is zero.",
            png=search.prompt.png(),
        )
