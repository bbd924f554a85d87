"""The charts of a DHP search."""

from collections.abc import Iterator

from prunus.charts import Chart, Heat, Lines
from prunus.methods.dhp.search import DHP

SHOWN_TIMES = 40  # points of each latent's curve


def charts(search: DHP) -> Iterator[Chart]:
    """The charts of a search: the cost and its plan, the widths, the latents."""
    records = search.records
    steps, price = [record["step"] for record in records], search.budget.name
    plan = {"plan": [(record["step"], record["plan"]) for record in records]}
    followed = plan if search.config.strength is None else {}  # a constant strength follows no plan
    yield Lines(
        title=f"{price} of the units still in use",
        note=f"Dashed: {'the plan that the strength of the threshold follows, and ' if followed else ''}the budget. "
        "Units in use above the budget at the end were cut then.",
        x_label="step",
        y_label="share of the original",
        series={"in use": [(record["step"], record["ratio"]) for record in records]},
        references=followed | {"budget": [(step, search.target) for step in (steps[0], steps[-1])]},
    )
    sizes = [search.graph.axes[name].size for name in search.latents.places]
    yield Heat(
        title="Widths",
        note="The share of each axis that is in use: the darker, the more.",
        rows=list(search.latents.places),
        x=steps,
        x_label="step",
        values=[[record["widths"][row] / size for record in records] for row, size in enumerate(sizes)],
        value_label="in use",
    )
    fates: dict[str, list] = {"kept": [], "removed": []}
    assert search.keep is not None  # charts are drawn once the search has decided
    times = records[:: -max(1, len(records) // SHOWN_TIMES)][::-1]  # includes the last
    for at, stays in enumerate(search.as_mask(search.keep)[search.tracked].tolist()):
        line = [(record["step"], record["latents"][at]) for record in times]
        fates["kept" if stays else "removed"].append(line)
    yield Lines(
        title="Latents",
        note=f"The sizes of {len(search.tracked)} of {len(search.owners)} latents. A unit whose latent is zero has no "
        "effect; one that is kept nevertheless fills a width up to a multiple (round_to).",
        x_label="step",
        y_label="size of the latent",
        thin=fates,
    )
