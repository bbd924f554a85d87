"""Write docs/coverage.md from the results of coverage.py: python benchmarks/coverage_page.py"""

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from coverage_models import LISTS
from tables import RESULTS, table

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
RACERS = ("ours_proved", "ours", "theirs")
NAMES = {
    "torchvision": "torchvision, classification",
    "tv_seg": "torchvision, segmentation",
    "tv_det": "torchvision, detection",
    "timm": "timm",
    "hf": "transformers",
}
CHAIN = ("trace", "cut", "proof", "runs", "saved", "trained", "exported")  # what every model should pass
FEW = 0.4  # of the multiply-adds left

Row = dict[str, Any]


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def stage(row: Row, name: str) -> Row:
    """A stage of a model; one that was not reached did not hold."""
    return row["stages"].get(name, {"ok": False})


def holds(name: str) -> Callable[[Row], bool]:
    return lambda row: stage(row, name)["ok"]


def applies_not(row: Row, name: str) -> bool:
    return bool(stage(row, name).get("not_applicable"))


def whole_chain(row: Row) -> bool:
    return all(stage(row, name)["ok"] for name in CHAIN)


def both_modes(row: Row) -> bool:
    return holds("proof")(row) and {"eval", "train"} <= set(stage(row, "trace").get("modes", ()))


def few_left(row: Row) -> bool:
    return holds("runs")(row) and stage(row, "cut")["macs_left"] <= FEW


COUNTS: dict[str, Callable[[Row], bool]] = {
    "traced": holds("trace"),
    "cut and runs": holds("runs"),
    "proved": holds("proof"),
    "in both modes": both_modes,
    "exact by an own check": lambda row: stage(row, "exact").get("exact") is True,
    "not checked": lambda row: holds("exact")(row) and stage(row, "exact").get("exact") is None,
    "saved and loaded": holds("saved"),
    "trained a step": holds("trained"),
    "exported": lambda row: holds("exported")(row) and not applies_not(row, "exported"),
    "torch.export refuses the original": lambda row: applies_not(row, "exported"),
    "all of these": whole_chain,
    "at most 40 % of the multiply-adds": few_left,
}


def per_list(rows: list[Row], cells: Callable[[list[Row]], list[str]]) -> list[list[str]]:
    """A row of a table for each list that has results, and one for all."""
    lines = [[NAMES[kind], *cells(own)] for kind in LISTS if (own := [r for r in rows if r["list"] == kind])]
    return [*lines, ["**all**", *cells(rows)]]


def counts(rows: list[Row]) -> list[str]:
    return [str(len(rows)), *(str(sum(map(test, rows))) for test in COUNTS.values())]


def middle(values: Iterable[float], digits: int = 1) -> str:
    """The median, and the largest value."""
    found = list(values)
    return f"{statistics.median(found):.{digits}f} (at most {max(found):.{digits}f})" if found else "-"


def figures(rows: list[Row], name: str, key: str) -> list[float]:
    return [row["stages"][name][key] for row in rows if holds(name)(row)]


def goals(rows: list[Row], races: list[Row]) -> str:
    number = len(rows)
    lines = [
        [
            "pass all stages, proved in both modes",
            share(rows, lambda r: whole_chain(r) and both_modes(r)),
            "all",
        ],
        ["at most 40 % of the multiply-adds left", share(rows, few_left), "97 %"],
        [
            "proof over the plain forwards it needs, two for each mode",
            middle(figures(rows, "timed", "proof_over_forwards")),
            "at most 3",
        ],
        [
            "L2 scores over one read of the weights",
            middle(figures(rows, "timed", "scores_over_read")),
            "at most 3",
        ],
    ]
    if races:
        lines += [
            [
                "with the proof, over torch-pruning without",
                middle(ratios(races, "ours_proved"), 2),
                "at most 1",
            ],
            ["without the proof, over torch-pruning", middle(ratios(races, "ours"), 2), "0.4, none above 1"],
        ]
    return table([f"of {number} models", "measured", "goal"], lines)


SLOW = 3  # times what a proof, or a score, is compared with


def misses(rows: list[Row], races: list[Row]) -> str:
    """Lines that name the models which miss a goal."""

    def slower(name: str, key: str) -> list[str]:
        return [row["name"] for row in rows if holds(name)(row) and row["stages"][name][key] > SLOW]

    def behind(who: str, most: float) -> list[str]:
        both = [row for row in races if managed(row, who) and managed(row, "theirs")]
        return [row["name"] for row in both if ratios([row], who)[0] > most]

    found = {
        "a stage fails": [row["name"] for row in rows if not whole_chain(row)],
        "not proved in both modes": [row["name"] for row in rows if not both_modes(row)],
        "more than 40 % of the multiply-adds left": [
            f"{row['name']} ({stage(row, 'cut')['macs_left']:.2f})" for row in rows if not few_left(row)
        ],
        f"proof above {SLOW} times the forwards": slower("timed", "proof_over_forwards"),
        f"scores above {SLOW} times a read": slower("timed", "scores_over_read"),
        "slower than torch-pruning without the proof": behind("ours", 1.0),
    }
    counted = {
        what: f"{len(names)}: {', '.join(names)}" if names else "none" for what, names in found.items()
    }
    return "\n".join(f"- {what}: {names}" for what, names in counted.items())


def share(rows: list[Row], test: Callable[[Row], bool]) -> str:
    found = sum(map(test, rows))
    return f"{found} of {len(rows)} ({found / len(rows):.0%})"


# ----------------------------------------------------------------------------------- beside torch-pruning
def managed(row: Row, who: str) -> bool:
    return "error" not in row[who]


def ratios(rows: list[Row], who: str) -> list[float]:
    """CPU seconds over torch-pruning's, medians over rounds, of the models that both manage."""
    return [
        statistics.median(row[who]["cpu_s"]) / statistics.median(row["theirs"]["cpu_s"])
        for row in rows
        if managed(row, who) and managed(row, "theirs")
    ]


def race_words(row: Row) -> str:
    seconds = (
        f"{who} {statistics.median(row[who]['cpu_s']):.2f} s"
        if managed(row, who)
        else f"{who} {row[who]['error']}"
        for who in RACERS
    )
    return ", ".join(seconds)


def race_cells(rows: list[Row]) -> list[str]:
    return [
        str(len(rows)),
        str(sum(managed(row, "ours_proved") for row in rows)),
        str(sum(managed(row, "theirs") for row in rows)),
        str(len(ratios(rows, "ours_proved"))),
        middle(ratios(rows, "ours_proved"), 2),
        middle(ratios(rows, "ours"), 2),
    ]


def race(found: dict[str, Any]) -> str:
    head = ["list", "models", "Prunus", "torch-pruning", "both", "with the proof, ratio", "without, ratio"]
    failing = [[row["name"], row["theirs"]["error"]] for row in found["rows"] if not managed(row, "theirs")]
    return f"""## Beside torch-pruning 1.6.1

Analyse, L2 scores, half of every axis, removal (`python benchmarks/coverage.py --peer`): MagnitudePruner with
GroupMagnitudeImportance(p=2), ratio 0.5, told the classifier and the heads of torch's own attention; no recipe of its
examples. CPU seconds on one thread, in turns, medians of three rounds after one to warm up; a ratio is ours over
theirs, the median over the models that both manage. A tool manages a model if that runs after the cut with the shapes
that it had and fewer multiply-adds; torch-pruning does not prove that its result is right. Listed models that are not
here were not measured: their turn ran out of time beside other work on the machine, or never came. At most
{found["setup"]["limit_s"]:.0f} s a model, all rounds together.

{table(head, per_list(found["rows"], race_cells))}

What torch-pruning does not manage, with its first error:

{table(["model", "error"], [[name, one_cell(error)] for name, error in failing])}
"""


# ------------------------------------------------------------------------------------------- every model
def one_cell(text: str, most: int = 160) -> str:
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= most else f"{text[:most]}..."


def seconds(row: Row, name: str) -> str:
    return f"{row['stages'][name]['cpu_s']:.2f}" if holds(name)(row) else "-"


def verdict(row: Row) -> str:
    """What does not hold, with the first line of the error; otherwise what should be known."""
    words = [f"{name}: {found['error']}" for name, found in row["stages"].items() if not found["ok"]]
    words += [
        f"{name}: {found['not_applicable']}"
        for name, found in row["stages"].items()
        if applies_not(row, name)
    ]
    if not words:
        why = stage(row, "trained").get("why_not_training")
        words = [f"trained in evaluation mode: {why}"] * bool(why) + stage(row, "trace")["warnings"][:1]
    return one_cell("; ".join(words))


def cells(row: Row) -> list[str]:
    left = f"{row['stages']['cut']['macs_left']:.2f}" if holds("cut")(row) else "-"
    params = f"{row['stages']['trace']['params_left']:.2f}" if holds("trace")(row) else "-"
    exact = (
        {True: "yes", None: "not checked"}[stage(row, "exact").get("exact")] if holds("exact")(row) else "no"
    )
    passed = [str(sum(holds(name)(row) for name in CHAIN))]
    times = [seconds(row, name) for name in ("trace", "cut", "proof")]
    peak = f"{row['peak_mb'] / 1024:.1f}" if row["peak_mb"] else "-"
    return [row["name"], *passed, left, params, exact, *times, peak, verdict(row)]


def every_model(rows: list[Row]) -> str:
    head = [
        "model",
        f"stages held, of {len(CHAIN)}",
        "multiply-adds left",
        "parameters left",
        "exact",
        "trace, s",
        "cut, s",
        "proof, s",
        "peak, GiB",
        "what fails, or should be known",
    ]
    return "\n".join(
        f"### {NAMES[kind]}\n\n{table(head, list(map(cells, own)))}\n"
        for kind in LISTS
        if (own := [row for row in rows if row["list"] == kind])
    )


def page(found: dict[str, Any], peer: dict[str, Any] | None) -> str:
    rows, setup, machine = found["rows"], found["setup"], found["machine"]
    listed = sum(map(len, LISTS.values()))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"""# Coverage: which models Prunus halves, and how that is known

Written by `python benchmarks/coverage.py` from `benchmarks/results/coverage.json`: {len(rows)} of the {listed} listed
models. Each is built with random weights and taken through these stages in a process of its own:

- **trace**; **cut**: the better half of every axis by L2 stays, removed for real; **proof**: in evaluation, and in
  training where a model's own code asks for its mode; elsewhere evaluation stands for both (docs/tracing.md);
- **runs**: the outputs keep their shapes; **counted**: the closed form of the multiply-adds is what torch counts,
  before and after;
- **exact**: the script's own check, in double precision, against the original with zeros in the removed units, norms
  over channels made affine on both sides; "not checked" where other operators mix units and zeros cannot stand for
  them;
- **saved**: saved, loaded, the same outputs; **trained**: a step of SGD in training mode (in evaluation where a
  model does not train on one image; detectors get targets); **exported** by torch.export, the same outputs.
  torch.export refuses some models before they are cut, too; these count as held.

CPU seconds on one thread, {setup["jobs"]} at once, at most {setup["limit_s"]:.0f} s a model; peaks of memory are of the
whole process. The machine did other work too, and no single commit made all rows.
{versions}; {machine["processor"]}, {machine["cores"]} cores.

{table(["list", "models", *COUNTS], per_list(rows, counts))}

## Goals

{goals(rows, peer["rows"] if peer else [])}

Models that miss a goal:

{misses(rows, peer["rows"] if peer else [])}

{race(peer) if peer else ""}
## Every model

{every_model(rows)}"""


def write() -> None:
    found = read("coverage")
    if found:
        PAGE.write_text(page(found, read("coverage_peer")))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    write()
