"""Write docs/benchmarks.md from benchmarks/results/*.json: python benchmarks/tables.py"""

import json
import statistics
from pathlib import Path

from scipy.stats import kendalltau

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "benchmarks.md"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def core() -> str:
    result = read("core")
    head = [
        "network",
        "Prunus, s",
        "torch-pruning, s",
        "times faster",
        "proof, s",
        "trace / plain meta forward",
    ]
    rows = [
        [
            row["model"],
            f"{row['prunus_s']:.3f}",
            f"{row['torch_pruning_s']:.3f}",
            f"{row['times_faster']:.2f}",
            f"{row['proof_s']:.1f}",
            f"{row['trace_over_plain']:.2f}",
        ]
        for row in result["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    vit = next(row for row in result["rows"] if row["model"] == "vit_b_16")
    return f"""## Structure: analyse, score, cut

Trace, L2 scores, half of every axis, physical removal, against torch-pruning 1.6.1 doing the same
(`python benchmarks/core.py`; medians of {result["repeats"]} interleaved rounds, threads: {result["threads"]}, random
weights, 1x3x224x224, a shared machine). The proof is listed separately, because torch-pruning has none.
On vit_b_16 torch-pruning removes less: {vit["torch_pruning_params_left"]:.0%} of the parameters are left,
{vit["params_left"]:.0%} with Prunus. Median: {result["median_times_faster"]:.1f} times faster.
Cost queries, ResNet-50: {result["resnet50_width_vectors_per_second"]:,.0f} width vectors per second.

{table(head, rows)}

The smallest margin is on mobilenet_v3_large, where most of the time goes to torch's own meta kernels and module copies.
On a machine with every core busy the margins shrink, because torch's threads wait for each other.

{versions}; {result["machine"]}.
"""


def round_to() -> str:
    result = read("round_to")
    rows = [
        [
            name,
            f"{entry['macs'] / 1e6:.1f} M",
            f"{entry['wall_ms']:.0f}",
            spread(entry),
            f"{entry['cpu_ratio']:.2f}",
        ]
        for name, entry in result["networks"].items()
    ]
    setup, machine = result["setup"], result["machine"]
    return f"""## Width rounding: a training step of {setup["model"]}

Forward and backward, batch size {setup["batch"]}, bf16 autocast, channels-last, {setup["threads"]} threads: the dense
network (twice, to show how far the ratios can be trusted) and the same network cut to half its multiply-adds with each
`round_to`, interleaved (`python benchmarks/round_to.py`). `auto` is the default of `select`. Ratios are of wall-clock
time, {describe_setup(setup)}, and of processor time; the load before was {machine["load_before"]:.1f}.

{table(["widths", "multiply-adds", "ms per step", "wall over dense", "processor over dense"], rows)}
"""


def precision() -> str:
    result = read("precision")
    rows = [
        [name, f"{row['bf16_ms']:.0f}", f"{row['full_ms']:.0f}", f"{row['bf16_over_full']:.1f}"]
        for name, row in result["rows"].items()
    ]
    return f"""## Precision on a processor without bf16 instructions

Forward and backward, batch size {result["batch"]}, channels-last, bf16 autocast and full precision in turns,
medians, threads: {result["machine"]["threads"]} (`python benchmarks/precision.py`; other work ran beside it). The
processor has AVX2, but neither AVX-512 nor bf16. Prunus chooses precision={result["advised"]} there.

{table(["network", "bf16, ms", "full precision, ms", "bf16 over full"], rows)}
"""


def resnet56() -> str:
    result = read("resnet56_taylor")
    before, after = result["before"], result["after"]
    rows = [
        ["multiply-adds", f"{before['macs'] / 1e6:.1f} M", "", f"{after['macs'] / 1e6:.1f} M"],
        ["parameters", f"{before['params'] / 1e3:.0f} k", "", f"{after['params'] / 1e3:.0f} k"],
        [
            "accuracy, test",
            f"{before['accuracy']:.2%}",
            f"{result['pruned']['accuracy']:.2%}",
            f"{after['accuracy']:.2%}",
        ],
    ]
    proof = result["verified"]
    return f"""## A run: ResNet-56, CIFAR-10 (JPEG), half the multiply-adds

`prunus run --model zoo:resnet56 --weights cifar10_resnet56.safetensors --data parquet:cifar10 --method taylor
--budget macs=0.5`, one seed. The base is the given weights fine-tuned for 3 epochs on these JPEG images; recovery is 5
epochs with the base as teacher. Accuracies are the last epoch's, on the test set, on which no choice was made. Proof:
largest relative difference {proof["max_abs_error"]:.1e}, allowed {proof["tolerance"]:.0e}. One seed says little:
comparisons of methods need more.

{table(["", "base", "pruned", "recovered"], rows)}
"""


ARMS = {
    "magnitude": "magnitude",
    "lookahead": "lookahead",
    "backward": "lookahead, last layer first",
    "forward": "lookahead, first layer first",
    "behind": "only the layer after, LFP",
    "before": "only the layer before, LBP",
    "activity": "lookahead, weighted by activity",
    "random": "random",
    "magnitude-lamp": "magnitude, LAMP's shares",
    "lookahead-lamp": "lookahead, LAMP's shares",
    "behind-lamp": "LFP, LAMP's shares",
    "before-lamp": "LBP, LAMP's shares",
    "activity-lamp": "weighted by activity, LAMP's shares",
}
NETWORKS = {"fcn": "the fully connected network on MNIST", "conv6": "Conv-6 on CIFAR-10 (JPEG)"}


def ladder(network: str) -> str:
    result = read(f"lookahead_{network}")
    rows, setup = result["rows"], result["setup"]
    shares = sorted({row["survivors"] for row in rows if row["arm"] != "dense"}, reverse=True)
    seeds = sorted({row["seed"] for row in rows})

    def cell(arm: str, share: float) -> str:
        errors = [100 - 100 * r["accuracy"] for r in rows if r["arm"] == arm and r["survivors"] == share]
        if not errors:
            return "-"
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        return f"{statistics.mean(errors):.2f}{spread}"

    lines = [
        [words, *(cell(arm, share) for share in shares)]
        for arm, words in ARMS.items()
        if any(row["arm"] == arm for row in rows)
    ]
    runs = f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return f"""### {NETWORKS[network][0].upper()}{NETWORKS[network][1:]}

Test error in %, {runs}, by the share of weights that survive; the dense network:
{cell("dense", 1.0)}. Trained for {setup["base_epochs"]} epochs, pruned at once, trained on for {setup["epochs"]}
(`python benchmarks/lookahead.py {network} --data parquet:DIR`).

{table(["score", *(f"{100 * share:.2f} %" for share in shares)], lines)}
"""


def scoring() -> str:
    result = read("weight_scores")
    names = list(result["rows"][0]["times"])
    head = ["", *(f"{row['network']}, {row['dtype']}" for row in result["rows"])]
    lines = [
        [n, *(f"{r['times'][n]['over_floor']:.1f}" for r in result["rows"])] for n in names if n != "floor"
    ]
    floors = ["floor, ms", *(f"{1000 * row['times']['floor']['seconds']:.0f}" for row in result["rows"])]
    return f"""## Scoring single weights: time relative to copying them

`python benchmarks/weight_scores.py`; the floor is the time of a fresh float32 copy of every weight, medians of
{result["setup"]["rounds"]} interleaved rounds, {result["setup"]["threads"]} threads, load before
{result["machine"]["load_before"]:.1f}. The goal was 3: the transformer of 300 M is near it; the small network is not,
because its weights stay in the cache. A pass in order scores every layer again and selects at each step. The time to
allocate memory, a part of the floor, varies between runs by a factor of ten.

{table(head, [floors, *lines])}
"""


def zeros() -> str:
    result = read("zeros")
    runners = ["torch, pruned", "torch CSR, pruned", "onnxruntime, pruned", "OpenVINO, pruned"]

    def cell(row: dict, batch: str, name: str) -> str:
        found = row["rows"][batch].get(name)
        return f"{1 / found['of_base']['median']:.2f}" if found else "-"

    met = [n for n in runners if any(n in row["rows"]["1"] for row in result["rows"])]
    head = ["network", "zeros", *(f"{n.partition(',')[0]}, batch {b}" for b in ("1", "64") for n in met)]
    lines = [
        [r["network"], f"{r['sparsity']:.0%}", *(cell(r, b, n) for b in ("1", "64") for n in met)]
        for r in result["rows"]
    ]
    return f"""## What zeros gain in time

The speed relative to the dense network in the same program (CSR: relative to torch), {
        result["setup"]["threads"]
    } threads,
load before {
        result["load_before"]:.1f} (`python benchmarks/zeros.py`, medians; no unit was removed). These are
short calls on a shared machine: a gain that does not grow with the zeros is chance.

{table(head, lines)}
"""


def patterns() -> str:
    result = read("patterns")
    names = [name for name in result["rows"][0]["times"] if name != "floor"]
    head = ["", *(f"{row['network']}, {row['dtype']}" for row in result["rows"])]
    lines = [[n, *(f"{r['times'][n]['over_floor']:.1f}" for r in result["rows"])] for n in names]
    return f"""## Selecting weights by pattern: time relative to the same copy

`python benchmarks/patterns.py`; the same floor, medians of {result["setup"]["rounds"]} interleaved rounds,
{result["setup"]["threads"]} threads, load before {result["machine"]["load_before"]:.1f}.

{table(head, lines)}
"""


DHP_ARMS = {
    "dhp": "dhp",
    "dhp-all": "dhp, pressure on all latents",
    "dhp-random": "dhp, but random units are removed",
    "dhp-scratch": "dhp, from scratch",
    "dhp-paper": "dhp, as in the paper, from scratch",
    "taylor": "taylor",
    "l1": "L1",
    "uniform": "uniform widths, L2",
}


def dhp() -> str:
    result = read("dhp_resnet20")
    setup, rows = result["setup"], {row["arm"]: row for row in result["rows"] if row.get("seed", 0) == 0}
    base = rows["base"]
    lines = [
        [
            words,
            *(f"{100 * row[key]:.1f}" for key in ("before", "after", "renewed", "recovered")),
            f"{row['auc']:.2f}" if "auc" in row else "",
            f"{100 * row['share']:.1f} %",
        ]
        for arm, words in DHP_ARMS.items()
        if (row := rows.get(arm))
    ]
    head = ["", "before removal", "after", "norms recalibrated", "recovered", "AUC", "multiply-adds"]
    return f"""## DHP

ResNet-20, CIFAR-10 (JPEG), {setup["budget"]}, widths in multiples of {setup["round_to"]}, one seed
(`python benchmarks/dhp.py`). The base has {100 * base["recovered"]:.1f} %. Every arm has
{setup["search_epochs"]} + {setup["epochs"]} epochs: search and recovery, or recovery throughout. Accuracy
in % on the test set, on which no choice was made: before units are removed, right after, with norm statistics
recalibrated, and after recovery (last epoch). AUC: how well the initial sizes of the latents predict which units stay;
0.5 where all start equal.

{table(head, lines)}

{DHP_READING}
### What latents add to a training step

`python benchmarks/dhp_overhead.py [--threads 1 --networks resnet20]`: time relative to the plain network, interleaved,
{describe_setup(read("dhp_overhead")["setup"])}, batch size 128. `plain again` shows the noise.
The whole search, one epoch to half the multiply-adds, removes units on the way; it counts the remaining units at most
two hundred times, however long it is, so a longer search costs less per step.

{overhead("dhp_overhead", OVERHEAD)}

The goal was 2 % per step. On ResNet-20 other programs on the machine hide whether it is met (0 % with two threads,
3.5 % with one); on ResNet-56 it is missed: latents add about 5 %. The search takes less time than plain training, but
for ResNet-20 on two threads it takes as long: half the multiply-adds of so narrow a network still take most of
the time.
"""


def overhead(name: str, words: dict[str, str]) -> str:
    """The table of each network's ratios to what it is compared with, on two threads and on one; `words`: columns."""
    lines = [
        [network, str(result["setup"]["threads"]), *(spread(found[label], 3) for label in words)]
        for result in (read(name), read(f"{name}_1thread"))
        for network, found in result["networks"].items()
    ]
    return table(["network", "threads", *words.values()], lines)


def spread(row: dict, digits: int = 2) -> str:
    """A ratio of wall-clock time, and its lowest and highest value over processes."""
    middle, least, most = (f"{row[key]:.{digits}f}" for key in ("wall_ratio", "least", "most"))
    return middle if least == most else f"{middle} ({least} to {most})"


def describe_setup(setup: dict) -> str:
    """State how ratios were measured; see timed.py."""
    return f"medians of {setup['processes']} processes (least to most) of {setup['rounds']} rounds each"


def latency() -> str:
    result = read("latency")
    rows = [
        [
            row["network"],
            row["runtime"],
            f"{row['original_ms']:.2f}",
            f"{row['r2']:.3f}",
            f"{row['worst_error']:.0%}",
        ]
        + [
            f"{limit[key]:.2f}"
            for limit in row["limits"]
            for key in ("predicted", "measured", "again", "macs")
        ]
        for row in result["rows"]
    ]
    limits = result["setup"]["limits"]
    head = ["network", "in", "ms", "R2", "worst error"]
    head += [
        f"{limit}: {what}" for limit in limits for what in ("predicted", "measured", "again", "multiply-adds")
    ]
    return f"""## Milliseconds as a budget

`python benchmarks/latency.py`: tables of operators, a prediction fitted to whole random sub-networks, R2 and worst
error on others; then `select` for each limit, a share of the original's time, by L2 scores: the predicted share, the
share measured in turns with the original when the budget was met, and the share measured again afterwards. One image,
{result["setup"]["threads"]} thread, {result["machine"]["device"]}, load before {result["load_before"]:.1f}.

{table(head, rows)}
"""


META_ARMS = {
    "uniform": "uniform widths",
    "l1-global": "L1 of all units together",
    "random": "random search, the base's weights",
    "inherit": "evolution, the base's weights",
    "greedy": "greedy, the base's weights",
    "shared": "evolution, shared weights",
    "residual": "evolution, shared weights and a hypernetwork",
    "hypernet": "evolution, the paper's hypernetwork",
    "milliseconds": "evolution, the base's weights, milliseconds",
}
META_SCORES = {
    "inherit": "the base's weights",
    "shared": "shared",
    "residual": "shared and a hypernetwork",
    "hypernet": "the paper's hypernetwork",
    "params": "parameters",
    "macs": "multiply-adds",
}


def metapruning() -> str:
    result = read("metapruning_resnet20")
    setup = result["setup"]
    of = {arm: [row for row in result["rows"] if row["arm"] == arm] for arm in (*META_ARMS, "base", "drawn")}
    lines = [
        [
            words,
            str(row["seed"]),
            *searching(row),
            *(f"{100 * row[key]:.1f}" for key in ("renewed", "recovered", "share")),
        ]
        for arm, words in META_ARMS.items()
        for row in of[arm]
    ]
    head = ["", "seed", "training, s", "search, s", "networks (dropped)", "images"]
    head += ["search: winner", "uniform", "confirmed: winner", "uniform"]
    head += ["norms recalibrated", "recovered", "multiply-adds, %"]
    truth = {row["number"]: row["recovered"] for row in result["rows"] if row["arm"] == "truths"}
    values = {name: [row["scores"].get(name, row.get(name)) for row in of["drawn"]] for name in META_SCORES}
    known = [index for index, row in enumerate(of["drawn"]) if row["number"] in truth]
    final = [truth[of["drawn"][index]["number"]] for index in known]
    agreement = [
        [
            words,
            *("" if other == name else f"{tau(values[name], values[other]):.2f}" for other in META_SCORES),
            f"{tau([values[name][index] for index in known], final):.2f}",
        ]
        for name, words in META_SCORES.items()
    ]
    epochs = {name: options.get("epochs") for name, options in setup["searches"].items()}
    return f"""## MetaPruning

ResNet-20, CIFAR-10 (JPEG), {setup["budget"]}, widths in multiples of {setup["round_to"]}
(`python benchmarks/metapruning.py`). Only widths are compared: every arm ends with the base's own units, the best of
each axis by Taylor scores, at the widths that it found, with {
        setup["epochs"]
    } epochs of recovery; the teacher is the
base, which has {100 * of["base"][0]["recovered"]:.1f} %. Searches evaluate {setup["generations"]} x {
        setup["population"]
    } networks with
{setup["calibration"]} images to calibrate norms and {
        setup["images"]
    } for the score; the paper evaluates 1000 networks
with 150,000. Shared weights were trained for {epochs["shared"]} epoch by the sandwich rule, alone and with a
hypernetwork's addition; the paper's hypernetwork for {
        epochs["hypernet"]
    } epochs from scratch, one random network per
step (the paper: a quarter of a training). Scores, in %, of the winner and the uniform network are on the images of the
search and on those of the confirmation, with each search's own weights, so these columns do not compare searches.
Norms recalibrated and recovered (last epoch): accuracy in % on the test set, on which no choice was made. Images:
forward passes of the search. Seconds are processor time, one thread, on a shared machine.

{table(head, lines)}

{milliseconds(of["milliseconds"][0], setup["latency"])}
Agreement of scores: Kendall's tau over {len(of["drawn"])} random networks at the budget, with parameters and
multiply-adds as controls; last column: with the test accuracy after one epoch of recovery, for {
        len(known)
    } of them.

{table(["", *META_SCORES.values(), "recovered"], agreement)}

{META_READING}
{search_speed()}"""


def searching(row: dict) -> list[str]:
    """The cells for a search's cost and scores; empty if there was no search."""
    if "networks" not in row:
        return [""] * 8
    seconds = row["processor_seconds"]
    scores = [row["scores"][on][of] for on in ("search", "confirm") for of in ("winner", "uniform")]
    return [
        f"{seconds['training']:.0f}",
        f"{seconds['searching']:.0f}",
        f"{row['networks']} ({row['dropped']})",
        f"{row['pictures'] / 1e3:.0f} k",
        *("-" if score is None else f"{100 * score:.1f}" for score in scores),
    ]


def tau(a: list[float], b: list[float]) -> float:
    return kendalltau(a, b).statistic


def milliseconds(row: dict, limit: float) -> str:
    found = row["figures"]
    shares = [found[key] / found["original_ms"] for key in ("predicted_ms", "measured_ms")]
    return f"""Milliseconds: the budget was {limit} of the base's {found["original_ms"]:.2f} ms, for one image in
torch. The winner was predicted to take {shares[0]:.3f} of it, was measured at {shares[1]:.3f} when it was chosen, and
at {row["again"]:.3f} when only it and the base were measured again; {found["measured"]} networks were measured.
"""


def search_speed() -> str:
    result = read("search_speed")
    candidate, search, setup = result["candidate"], result["search"], result["setup"]
    ways = {
        "inherit": "with the base's weights",
        "hypernet": "with a PruningNet's weights",
        "original": "as in the original",
    }
    lines = [[words, f"{candidate['to_passes'][key]['wall']:.2f}"] for key, words in ways.items()]
    return f"""### The cost of a search beside its forward passes

`python benchmarks/search_speed.py`, {setup["threads"]} threads, medians of {
        setup["networks"]
    } networks evaluated in turn in
all ways: {setup["calibration"]} images to calibrate norms, {
        setup["images"]
    } to score; the original generates all weights
again for each batch and calibrates norms on {setup["original"]}.

{
        table(
            [
                "making, calibrating and scoring a network",
                "time relative to the small network's passes alone",
            ],
            lines,
        )
    }

The original's way takes {
        candidate["original_to_ours"]["wall"]:.1f} times as long as ours with the same PruningNet, and
{
        search[
            "original_to_search"
        ]:.1f} times as long as a network takes in a whole search, where networks that fall behind are
dropped early ({search["dropped"]} of {
        search["networks"]
    } here). The goal was ten times: most of the saving is images for
the norms, and with 50,000 images to score, as in the paper, the saving is smaller. Of that search's time
{100 * search["outside_of_calls"]["wall"]:.1f} % were spent outside of calls of networks. Costs: {
        result["queries_a_second"]:,.0f} width vectors per second.
"""


PASS_ARMS = {
    "pass": "pass",
    "pass-no-prompt": "pass, no prompt",
    "pass-not-recurrent": "pass, every axis read alone",
    "pass-product": "pass, masks on both sides",
    "pass-random-init": "pass, random initial scores",
    "pass-per-axis": "pass, equal shares of every axis",
    "l1": "L1",
    "l1-longer": "L1, recovered for the search's steps as well",
    "bn-scale": "norms' scales",
    "taylor": "taylor",
    "uniform": "uniform widths, L2",
    "random": "uniform widths, random units",
}
TRANSFERS = {
    "own": "pass, its own search",
    "structure": "the structure found on the other half",
    "hypernetwork": "the hypernetwork learned on the other half, no search",
    "hypernetwork-tuned": "the same, with a sixth of a search",
    "l1": "L1",
}
PASS_OVERHEAD = {
    "masked again": "masked again",
    "step": "a step of the search",
    "no prompt": "without a prompt",
    "selection": "selection, share of a step",
}


def passing() -> str:
    result = read("pass_resnet20")
    setup, rows = result["setup"], result["rows"]
    base = next(row for row in rows if row.get("arm") == "base")
    budgets = list(dict.fromkeys(row["budget"] for row in rows if "budget" in row))
    of = {(row["arm"], row["budget"]): row for row in rows if "budget" in row and row["seed"] == 0}
    lines = [
        [words, *(figure for budget in budgets for figure in accuracies(of.get((arm, budget))))]
        for arm, words in PASS_ARMS.items()
        if any((arm, budget) in of for budget in budgets)
    ]
    seconds = min(row["search_seconds"] for row in rows if "search_seconds" in row and "budget" in row)
    moved = {row["transfer"]: row for row in rows if "transfer" in row and row["seed"] == 0}
    there = [[words, *accuracies(moved.get(name))] for name, words in TRANSFERS.items() if name in moved]
    stages = ("cut", "norms recalibrated", "recovered")
    head = ["", *(f"{budget}: {stage}" for budget in budgets for stage in stages)]
    half = f"{100 * next(iter(moved.values()))['base']:.1f}" if moved else ""
    return f"""## PASS

ResNet-20, CIFAR-10 (JPEG), widths in multiples of {setup["round_to"]}, one seed (`python benchmarks/pass.py`). The
base has {100 * base["recovered"]:.1f} %. All arms have {setup["epochs"]} epoch of recovery with the base as teacher;
those of pass have {setup["steps"]} steps of search before it ({seconds:.0f} s on one thread, the fastest of all
searches). Accuracy in % on the test set, on which no choice was made: after the cut, with norms recalibrated, and after
recovery (last epoch).

{table(head, lines)}

Transfer from one half of the classes to the other, {budgets[0]}; the network fine-tuned on the other half has {half} %:

{table(["", *stages], there)}

{PASS_READING}
### The cost of a step of the search

`python benchmarks/pass_overhead.py [--threads 1 --networks resnet20]`: time relative to forward and backward through
the masked network, interleaved, {describe_setup(read("pass_overhead")["setup"])},
batch size 128; the goal was 1.10. Selection is the step from scores to exact masks; the goal was 0.05 of a step.

{overhead("pass_overhead", PASS_OVERHEAD)}
"""


def accuracies(row: dict | None) -> list[str]:
    """The cells for accuracy after the cut, with norms recalibrated, and after recovery."""
    return [f"{100 * row[key]:.1f}" for key in ("after", "renewed", "recovered")] if row else [""] * 3


PASS_READING = """The standard deviation of a figure is about 0.4 from the test set alone, and a search repeated after a
change of rounding may differ by as much. Our conclusions:

- After the cut, with norms recalibrated, the networks that pass finds are better than L1's: by 7 points at half the
  multiply-adds, by 14 at a quarter, after 300 steps in which no weight of the network changed. Taylor scores, without
  a search, are better still at a half and equal at a quarter.
- After recovery they are not: 84.5 % against 84.7 (L1), 85.1 (Taylor) and 84.0 (uniform widths) at a half, 78.0 against
  77.5, 79.9 and 78.1 at a quarter. The paper claims 1 to 3 points over its baselines at equal cost; we do not find
  them. With as many steps as pass spends on its search, L1 is 1.1 and 1.6 points ahead of it.
- The prompt and the recurrence make no difference that one seed could show: without a prompt 83.7 and 79.2 %, with
  every axis read alone 83.9 and 77.6 %.
- Our departure from the formula, masks on one side only, is confirmed: masks on both sides find networks that are 11
  to 12 points worse after the cut, and 1 after recovery. Random initial scores cost 0.4 and 4.2.
- Transfer from the other half of the classes is worse than pass's own search: the structure by 1.9 points, the
  hypernetwork by 1.5, with a short search by 1.3; L1, which needs neither, by 0.1.
- So try Taylor scores first; pass is a basis for further work.
- Made with a learning rate of 1e-4 and each mask's own gradient, which are no longer the defaults: docs/pass.md.
"""


META_READING = """Our conclusions, at 70 networks per search and two epochs of recovery:

- The search finds networks that are better before recovery: with the base's weights 7 to 9 points above the uniform
  network on the images of the search, and as much on those of the confirmation and on test. Recovery removes the
  difference: uniform widths end at 84.9 %, and so does every evolution, within 0.1. Random search is 0.8 above and L1
  0.5 below; the standard deviation of a figure is 0.35 from the test set alone. We cannot say that any of them beats
  uniform widths here.
- The hypernetwork is not worth its cost. Added to shared weights and trained with them, it raises all scores, the
  uniform network's more than the winner's, ranks networks as shared weights do (tau 0.88), and its winner recovers to
  the same accuracy. The paper's own hypernetwork took longer to train than any other, and its search returned the
  uniform network. It had 4 epochs; the 25 of the paper's rule were not tried.
- Shared weights may predict recovery a little better than the base's own (the networks are too few to be sure), for
  50 times the preparation, and the network that they chose ends equal. So `weights=inherit` is the default.
- Scores do predict recovery among random networks, which differ by 3 points after an epoch; multiply-adds and
  parameters predict little. Among the best networks, where searches end, the differences are too small to survive
  recovery.
- Evolution does not beat random search with this few networks (the paper evaluates 1000).
- The budget of milliseconds is met as measured, with a margin: the correction by the uniform network was too cautious
  for the winner. It leaves a quarter of the multiply-adds, because much of this network's time does not shrink with
  them.
"""


OVERHEAD = {
    "plain again": "plain again",
    "latents": "latents, nothing cut out",
    "paper": "the paper's hypernetwork",
    "whole search": "the whole search",
}
DHP_READING = """One seed; differences of half a point are noise. Our conclusions:

- After recovery dhp, taylor, L1 and uniform widths are equal (86.1 to 86.8 %): if recovery is long enough for what was
  cut, the choice of units hardly matters on so small a network. The gain of dhp is before recovery: its network is at
  84 % when units are removed, and their removal changes nothing, where cut networks fall to 10 to 22 %.
- The choice does matter: with random units instead of the loss's sensitivity, the same search ends 1.7 points lower.
- The threshold on all latents alike, as in the paper, loses 1.3 points to our pressure on the latents to which the loss
  is least sensitive. The initial sizes of the latents predict which units stay, with an AUC of 0.93; in the paper's
  mode, where they are random, of 0.99: there the initialisation selects the units, not the data.
- In the paper's mode removal costs 32 points (67.4 to 34.9 %), because the hypernetwork's bias leaves something in
  every removed unit, and because the search stops near the budget: 60 units in use had to be removed. Four epochs are
  too few for either of the two arms from scratch; compare them with each other.
- The searches have no teacher and the rate of tuning, which are no longer the defaults: docs/dhp.md.
- Norm statistics must be recalibrated on images augmented as in training: on images without augmentation,
  recalibration alone costs the unpruned base 3.6 points.
"""


def single_weights() -> str:
    parts = [
        "## Single weights: magnitude against lookahead\n",
        READING,
        *map(ladder, NETWORKS),
        zeros(),
        scoring(),
        patterns(),
    ]
    return "\n".join(parts)


READING = """Scores and shares are chosen independently: the first arms use the papers' shares of each layer,
the last use LAMP's. Pruning is one-shot, and retraining holds the masks; schedules are a fraction of the papers'
(which train for 20,000 to 50,000 steps before and after), so compare the columns with each other, not with the papers'
tables. Our conclusions:

- The paper's claim holds on its fully connected network, and the gain grows as it says: at 1.63 % survivors lookahead
  and magnitude are within the spread of each other, at 0.43 % lookahead has little more than half of magnitude's
  errors, and below that the gap is 20 points and more, far beyond the spread over seeds.
- Pruning in order (each layer scored with what is left of the layer before it) helps most at the extreme, by about 20
  points at 0.12 %; on Conv-6 by about 2. Weighting by activity, which uses 960 images, is best at every share.
- Neither neighbour alone suffices: the layer after (LFP) is worth a little more than the layer before (LBP).
- LAMP's shares change nothing on the fully connected network, whose layers are alike. On Conv-6 they are worth more
  than any score: about 20 points at 3.62 % survivors, where one epoch of retraining leaves all arms far from the
  dense network; lookahead is 3 points ahead of magnitude with both kinds of shares. One seed.
- So the defaults of `--method lookahead` are lookahead and LAMP. On networks with batch norm they
  lose to sizes: docs/sparsity.md.
"""


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    parts = ["# Benchmarks\n\nWritten by `python benchmarks/tables.py` from `benchmarks/results/`.\n"]
    PAGE.write_text(
        "\n".join(
            [
                *parts,
                core(),
                round_to(),
                precision(),
                resnet56(),
                dhp(),
                metapruning(),
                passing(),
                latency(),
                single_weights(),
            ]
        )
    )


if __name__ == "__main__":
    main()
