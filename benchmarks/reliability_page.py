"""Write docs/reliability.md from the record of the campaign: python benchmarks/reliability_page.py"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tables import RESULTS, table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.campaign import load  # noqa: E402
from tests.campaign.faults import FAULTS  # noqa: E402
from tests.campaign.record import CampaignRecord  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
METHODS = ("taylor", "dhp", "metapruning", "pass", "lookahead")
GOALS = {"kills": 200, "pairs": 100, "sizes": 20, "trials": 10_000, "rounds": 20}
IMPORT, HELP_S = 1.15, 1.0  # times import torch; seconds beyond it

Case = dict[str, Any]


def summed(cases: Iterable[Case], key: str) -> int:
    return sum(case[key] for case in cases)


def wrong(cases: Iterable[Case]) -> str:
    """How many cases went wrong."""
    return str(sum(bool(case["wrong"]) for case in cases) or "none")


def verdict(done: float, goal: float, cases: list[Case]) -> str:
    """Whether a goal is met: enough was tried, and nothing went wrong."""
    missing = [f"{goal - done:,.0f} of {goal:,} not tried"] if done < goal else []
    missing += [f"{wrong(cases)} went wrong"] if any(case["wrong"] for case in cases) else []
    return "; ".join(missing) or "met"


def beside_torch(cpu_s: dict[str, float]) -> tuple[float, float]:
    """What Prunus's names take over what torch takes, and the seconds of the help beyond that."""
    torch_s = cpu_s["import torch"]
    return cpu_s["prunus.trace"] / torch_s, cpu_s["prunus --help"] - torch_s


def goals(record: CampaignRecord, startup: dict[str, Any] | None) -> str:
    killed, pairs, disks = record.of("killed"), record.of("two writers"), record.of("full disk")
    fuzzed, rounds, faults = record.of("fuzz"), record.of("under load"), record.of("fault")
    rounds = [case for case in rounds if case["tests"] == ["tests"]]
    kills, trials = summed(killed, "kills"), summed(fuzzed, "refused") + summed(fuzzed, "read")
    trials += summed(fuzzed, "faults")
    rows = [
        ["kills over five methods: the same bits, nothing evaluated twice", f"{GOALS['kills']}", f"{kills}"],
        ["two runs begun at once: never mixed", f"{GOALS['pairs']}", f"{len(pairs)}"],
        ["sizes of a full disk: a sentence, then resumed", f"{GOALS['sizes']}", f"{len(disks)}"],
        ["damaged files: no error of another kind", f"{GOALS['trials']:,}", f"{trials:,}"],
        ["rounds of the whole suite beside busy loops: green", f"{GOALS['rounds']}", f"{len(rounds)}"],
        ["faults in the source: each makes a test fail", f"{len(FAULTS)}", f"{max(0, len(faults) - 1)}"],
    ]
    verdicts = [
        verdict(kills, GOALS["kills"], killed),
        verdict(len(pairs), GOALS["pairs"], pairs),
        verdict(len(disks), GOALS["sizes"], disks),
        verdict(trials, GOALS["trials"], fuzzed),
        verdict(len(rounds), GOALS["rounds"], rounds),
        verdict(len(faults), len(FAULTS) + 1, faults),
    ]
    rows = [[*row, found] for row, found in zip(rows, verdicts, strict=True)]
    if startup:
        median, least = (beside_torch(startup[key]) for key in ("cpu_s", "least_cpu_s"))
        names = (
            "`import prunus` and its names over `import torch`",
            "`prunus --help` beyond `import torch`, s",
        )
        rows += [
            [name, str(goal), f"{value:.2f} (least {best:.2f})", "met" if value <= goal else "missed"]
            for name, goal, value, best in zip(names, (IMPORT, HELP_S), median, least, strict=True)
        ]
    return table(["what", "goal", "done", "verdict"], rows)


def by_method(record: CampaignRecord) -> str:
    rows = []
    for method in METHODS:
        kinds = [
            [case for case in record.of(kind) if case["method"] == method]
            for kind in ("killed", "two writers", "full disk")
        ]
        killed, pairs, disks = kinds
        rows.append(
            [
                method,
                str(len(killed)),
                str(summed(killed, "kills")),
                str(len(pairs)),
                str(len(disks)),
                str(sum(case["was_full"] for case in disks)),
                wrong(case for kind in kinds for case in kind),
            ]
        )
    head = ["method", "runs killed", "kills", "pairs of writers", "sizes of disk", "were full", "went wrong"]
    return table(head, rows)


def fuzzing(cases: list[Case]) -> str:
    rows = [
        [
            case["name"].partition(",")[0],
            *(f"{case[key]:,}" for key in ("refused", "read", "faults", "grown_mb")),
        ]
        for case in cases
    ]
    head = ["file", "refused", "read all the same", "other errors", "memory grew, MB"]
    return table(head, rows) if cases else "None has been tried yet."


def found_wrong(record: CampaignRecord) -> str:
    lines = [
        f"- {case['kind']}, {case['name']}: {case['wrong']}" for case in record.cases if case.get("wrong")
    ]
    return "\n".join(lines) or "Nothing."


def under_load(cases: list[Case]) -> str:
    groups: dict[tuple[int, str], list[Case]] = {}
    for case in cases:
        words = ", ".join(f"`{test}`" for test in case["tests"])
        groups.setdefault((case["threads"], words), []).append(case)
    rows = []
    for (threads, words), own in sorted(groups.items()):
        passed, seconds = ({case[key] for case in own} for key in ("passed", "seconds"))
        spread = [f"{min(found)} to {max(found)}" for found in (passed, seconds)]
        rows.append([str(threads), words, str(len(own)), *spread, wrong(own)])
    head = ["threads", "tests", "rounds", "passed in each", "seconds of each", "rounds with a failure"]
    return table(head, rows) if cases else "None: no round has ended yet."


def elsewhere(cases: list[Case]) -> str:
    rows = [
        [case["name"], case["summary"].strip("= "), "; ".join(case["wrong"]) if case["wrong"] else "none"]
        for case in cases
    ]
    return table(["environment", "pytest said", "failed"], rows) if cases else "None has been tried yet."


def starting(startup: dict[str, Any]) -> str:
    rows = [
        [f"`{name}`", f"{startup['least_cpu_s'][name]:.2f}", f"{seconds:.2f}"]
        for name, seconds in startup["cpu_s"].items()
    ]
    return table(["program", "least, s", "median, s"], rows)


def circumstances(record: CampaignRecord) -> str:
    made = record.of("circumstances")
    commits = ", ".join(case["name"] for case in made)
    versions = ", ".join(f"{name} {version}" for name, version in made[-1]["versions"].items())
    return f"Commits {commits}. {versions}; {made[-1]['machine']['system']}, 2 cores that other programs kept busy."


def page(record: CampaignRecord, startup: dict[str, Any] | None) -> str:
    listed = "\n".join(f"- {fault.name}: `{fault.test}`" for fault in FAULTS)
    return f"""# Reliability: what was done to break Prunus, and what came of it

Written by `python benchmarks/reliability_page.py` from `benchmarks/results/reliability.jsonl`, to which the programs of
`tests/campaign` add a line for each case. Each program goes on where it was stopped:

```
python -m tests.campaign.interrupt --record benchmarks/results/reliability.jsonl     # kills, writers, full disks
python -m tests.campaign.fuzz --record benchmarks/results/reliability.jsonl          # damaged files
python -m tests.campaign.fuzz_runs --record benchmarks/results/reliability.jsonl     # damaged files of runs, resumed
python -m tests.campaign.guard --record benchmarks/results/reliability.jsonl         # faults in the source
python -m tests.campaign.load --record benchmarks/results/reliability.jsonl          # tests beside busy loops
```

{circumstances(record)}

## Goals

{goals(record, startup)}

What went wrong:

{found_wrong(record)}

## Killed, raced, out of space

Tiny networks, whole runs: base, method, proof, recovery, report. A killed run gets SIGKILL after a random part of the
time that a run takes, up to eight times, and is resumed each time; its weights, its keep, the journal of its search and
its figures are then compared with those of a run that nothing disturbed, to the bit. In which stage each kill fell was
not written down. Two writers begin in one new folder at the same moment. A full disk is a file system of a size between
nothing and what the run needs, which then grows.

{by_method(record)}

## Damaged files

Bytes, JSON trees, headers of tensors and lines, damaged by hypothesis in one to three places. A file may be refused by
an error of Prunus's own, or be read: damage that leaves another valid value is not noticed in files without a hash.
`sealed` is a saved model of today, whose hashes are compared: where it is read, it holds what was saved.

{fuzzing(record.of("fuzz"))}

Files of whole runs, which are then resumed:

{fuzzing(record.of("fuzz of runs"))}

## Faults that a test has to notice

Each is made in a copy of the package, where its test must fail; without it the test must pass.
`tests/campaign/test_guard.py` does the same in continuous integration.

{listed}

## Beside busy loops

`python -m tests.campaign.load`: a busy loop for each core, beside whatever else the machine does. Its tests are
{", ".join(f"`{name}`" for name in load.TESTS)}; those that were run:

{under_load(record.of("under load"))}

## Other versions

`python -m tests.campaign.elsewhere PYTHON`, the tests of the core and of saved files. Continuous integration has one
environment: Python 3.11 and the torch of constraints.txt.

{elsewhere(record.of("elsewhere"))}

{
        f'''## Starting

CPU seconds of `python benchmarks/startup.py`, {startup["rounds"]} rounds in turns. `import prunus` imports nothing
else; torch comes with the first of its names, so `prunus.trace` is what is held against the goal, and medians are.

{starting(startup)}
'''
        if startup
        else ""
    }
## What was not tried

- power failures, and disks that lose what was flushed: SIGKILL leaves the system's cache whole;
- NFS, Windows, macOS, and more than one computer; the lock is written for NFS (docs/runs.md), and was never on one;
- kills of several processes that train together, other than by the tests of two processes;
- a coverage-guided fuzzer: damage is drawn blindly, by hypothesis;
- damage to data sets, other than to single images (docs/data.md);
- damage in result.json, settings.json, data.json and the records of stages that leaves another valid value: these have
  no hash. keep.json and the files beside it have one since format 2; base.safetensors is compared before result.json
  is written and before `prunus bench`;
- the 200 kills, once more: they and most pairs of writers were made at the first commit named above, when keep.json was
  still of format 1 and data.json was read without a schema;
- the whole suite under load: the rounds above are of the tests that start, kill or race processes or measure times.
"""


def write() -> None:
    record = CampaignRecord(RESULTS / "reliability.jsonl")
    startup = RESULTS / "startup.json"
    PAGE.write_text(page(record, json.loads(startup.read_text()) if startup.exists() else None))
    print(f"written to {PAGE}")


if __name__ == "__main__":
    write()
