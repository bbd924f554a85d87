"""The milliseconds that a finished run's model takes on this machine's processor, beside the base it was cut from.

Both are run by every installed program: torch; torch with sparse matrices (CSR) in the linear layers that are mostly
zeros; onnxruntime; OpenVINO. All take turns in a new random order each round, so that a busy machine slows all alike,
and a time is compared only with others of its round. Every program also runs a second copy of the base: the difference
between the two is chance. The pruned model counts as faster only if it needs less than 90 % of the base's time and, in
every fifth of the rounds, a smaller share of it than the second copy needs in any. Source: ours.
"""

import copy
import importlib.metadata
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from prunus.errors import PruningError
from prunus.export import (
    export_program,
    feed_of,
    largest_difference,
    missing_for_onnx,
    missing_for_openvino,
    open_session,
    prepare_openvino,
    store,
    to_onnx,
)
from prunus.files import write_json
from prunus.inputs import call, random_batch, tensors_in
from prunus.latency import take_turns
from prunus.options import Range, check_value
from prunus.progress import silent
from prunus.run.loading import load_base
from prunus.run.lock import sole_writer
from prunus.run.reopen import reopen_task
from prunus.sparse import formats

BATCHES = (1, 64)
FASTER = 0.9  # of the base's time; a smaller gain is not reported as one
CSR_FROM = 0.7  # share of zeros from which torch's sparse matrices can be faster
OPENVINO = {
    "PERFORMANCE_HINT": "LATENCY",
    "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.5,
}  # with sparse weights
PARTS = 5  # parts of the rounds, each evaluated separately
BASE, AGAIN, PRUNED = "base", "base again", "pruned"
Seconds = Annotated[float, Range(0, 24 * 3600, above=True)]
UNITS = "To gain time, remove units instead: prunus run --budget macs=0.5."


Run = Callable[[Any], list[Tensor]]


@dataclass(frozen=True)
class Runner:
    """One program with one of the models.

    Args:
        program: The program's name.
        model: BASE, AGAIN or PRUNED.
        run: Maps a batch of inputs to the tensors of its output.
    """

    program: str
    model: str
    run: Run

    @property
    def name(self) -> str:
        """The name of its row."""
        return f"{self.program}, {self.model}"


def bench_run(folder: Path, result: dict, *, seconds: float = 3.0, progress: Callable = silent) -> dict:
    """Measure the models of a finished run, and write the record to bench.json.

    Args:
        folder: The run's folder.
        result: Its result.json.
        seconds: How long to measure each batch size.
        progress: How to show the progress.

    Returns:
        The record; see `bench`.

    Raises:
        UserError: The model was not given by a SPEC, so it cannot be built again; or another process writes into the
            folder; or `seconds` is out of range.
        PruningError: A program computes something else than torch.
        FileError: A model's file has been changed or damaged since the run wrote it.
    """
    check_value("seconds", seconds, Seconds)
    task = reopen_task(folder, result, instead="call prunus.run.bench.bench with the two models")
    original = task.model
    zeros, macs = result["after"].get("sparsity", 0.0), result["after"]["macs"] / result["before"]["macs"]
    with sole_writer(folder):
        base, pruned = load_base(folder, original), store.load(folder, original)
        record = bench(base, pruned, task.example, zeros=zeros, macs=macs, seconds=seconds, progress=progress)
        write_json(folder / "bench.json", record)
    return record


def bench(
    base: nn.Module,
    pruned: nn.Module,
    example: Any,
    *,
    zeros: float = 0.0,
    macs: float = 1.0,
    seconds: float = 3.0,
    progress: Callable = silent,
) -> dict:
    """Measure a pruned model beside its base on random inputs like an example, one and 64 at once. Source: ours.

    Args:
        base: The model that was pruned.
        pruned: The pruned model.
        example: One input with a batch dimension of 1: a tensor, or a tuple or dict of arguments.
        zeros: The share of weights that are zero, for the text only.
        macs: The share of the base's multiply-adds that is left, for the text only.
        seconds: How long to measure each batch size.
        progress: How to show the progress.

    Returns:
        A record as plain JSON. rows: by batch size and runner, `median_ms`, and `of_base`, the share of the time that
        the same program needs for the base (torch for CSR): the median, and the lowest and highest of five parts of
        the rounds. missing: programs that were not run, and why. words: the conclusion.

    Raises:
        PruningError: A program computes something else than torch.
    """
    base, pruned = base.cpu().eval(), pruned.cpu().eval()
    with tempfile.TemporaryDirectory() as place:
        runners, missing = make_runners(base, pruned, example, Path(place))
        for runner in runners:
            check_output(runner, pruned if runner.model == PRUNED else base, example)
        times = {}
        for batch in BATCHES:
            x = random_batch(example, batch)
            with progress(f"measuring batches of {batch}", round(seconds)) as step:
                calls = {runner.name: partial(runner.run, x) for runner in runners}
                times[batch] = take_turns(calls, seconds, step)
    rows = {str(batch): {r.name: row(r, times[batch]) for r in runners} for batch in BATCHES}
    return {
        "rows": rows,
        "missing": missing,
        "words": words(times, missing, zeros, macs),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__}
        | {name: version(name) for name in ("onnxruntime", "openvino")},
    }


def make_runners(
    base: nn.Module, pruned: nn.Module, example: Any, place: Path
) -> tuple[list[Runner], dict[str, str]]:
    """Make the runners of every program that can run here; returns them, and why other programs cannot."""
    models = {BASE: base, AGAIN: copy.deepcopy(base), PRUNED: pruned}
    runners = [Runner("torch", which, prepare_torch(model)) for which, model in models.items()]
    missing = {}
    sparse = formats.to_csr(pruned, CSR_FROM)
    if any(tensor.layout == torch.sparse_csr for tensor in sparse.state_dict().values()):
        runners.append(Runner("torch CSR", PRUNED, prepare_torch(sparse)))
    else:
        missing["torch CSR"] = f"no linear layer has {100 * CSR_FROM:.0f} % of zeros"
    if needed := missing_for_onnx():
        return runners, missing | {"onnxruntime": needed, "OpenVINO": needed}
    files = {which: place / f"{which}.onnx" for which in models}
    for which, model in models.items():
        write_onnx(model, example, files[which])
    runners += [Runner("onnxruntime", which, prepare_onnxruntime(file)) for which, file in files.items()]
    if needed := missing_for_openvino():
        return runners, missing | {"OpenVINO": needed}
    of_openvino = {which: prepare_openvino(file, **OPENVINO) for which, file in files.items()}
    return [*runners, *(Runner("OpenVINO", which, run) for which, run in of_openvino.items())], missing


def prepare_torch(model: nn.Module) -> Run:
    """Prepare to run `model` in torch, without inference mode, because sparse matrices cannot multiply in it."""

    def run(x: Any) -> list[Tensor]:
        with torch.no_grad():
            return tensors_in(call(model, x))

    return run


def write_onnx(model: nn.Module, example: Any, file: Path) -> None:
    """Write `model` as ONNX with a free batch size; linear layers become Gemm with the weights as stored."""
    to_onnx(export_program(model, random_batch(example, 2), free_dims=(0,))).save(file)


def prepare_onnxruntime(file: Path) -> Run:
    """Prepare to run an ONNX file in onnxruntime, with as many threads as torch."""
    session = open_session(file.read_bytes())
    return lambda x: [torch.from_numpy(output) for output in session.run(None, feed_of(session, x))]


def check_output(runner: Runner, model: nn.Module, example: Any) -> None:
    """Raise PruningError unless the runner computes what torch does; otherwise its time would mean nothing."""
    x = random_batch(example, 3)
    error, allowed = largest_difference(runner.run(x), prepare_torch(model)(x))
    if not error <= allowed:
        raise PruningError(
            f"{runner.name} differs from the model by {error:.1e}; its time would mean nothing."
        )


def row(runner: Runner, times: dict[str, list[float]]) -> dict:
    """The record of one runner at one batch size."""
    found = {"median_ms": statistics.median(times[runner.name]), "rounds": len(times[runner.name])}
    if runner.model == BASE:
        return found
    against = f"{runner.program.removesuffix(' CSR')}, {BASE}"
    return found | {
        "of_base": dict(zip(("low", "median", "high"), share(times, runner.name, against), strict=True))
    }


def share(times: dict[str, list[float]], one: str, other: str) -> tuple[float, float, float]:
    """The share of `other`'s time that `one` needs, compared within rounds: the lowest median of five parts of the
    rounds, the median of all, the highest median of the five parts."""
    shares = [a / b for a, b in zip(times[one], times[other], strict=True)]
    parts = [statistics.median(shares[start::PARTS]) for start in range(PARTS)]
    return min(parts), statistics.median(shares), max(parts)


def is_faster(found: tuple[float, float, float], chance: tuple[float, float, float]) -> bool:
    """Whether a share of the base's time is a gain beyond chance. chance: the share that the base's copy needs."""
    return found[1] < FASTER and found[2] < min(1.0, chance[0])


def words(
    times: dict[int, dict[str, list[float]]], missing: dict[str, str], zeros: float = 0.0, macs: float = 1.0
) -> list[str]:
    """State the conclusion: the fastest way to run each model, for each batch size, and what to do."""
    lines, gains = [], []
    for batch, rounds in times.items():
        medians = {name: statistics.median(values) for name, values in rounds.items()}
        base, pruned = (
            min((name for name in rounds if name.endswith(f", {which}")), key=lambda name: medians[name])
            for which in (BASE, PRUNED)
        )
        found = share(rounds, pruned, base)
        gains.append(is_faster(found, share(rounds, base.replace(BASE, AGAIN), base)))
        unsure = "not reliably faster, the difference may be chance" if found[1] < FASTER else "no faster"
        verdict = f"{1 / found[1]:.2f} times as fast" if gains[-1] else unsure
        lines.append(
            f"{'one input' if batch == 1 else f'batch of {batch}'}: at best the base takes {medians[base]:.3g} ms "
            f"({base.partition(',')[0]}), the pruned model {medians[pruned]:.3g} ms "
            f"({pruned.partition(',')[0]}): {verdict}."
        )
    lines += [f"{program} was not measured: {why}." for program, why in missing.items()]
    tried = ", ".join(dict.fromkeys(name.partition(",")[0] for name in next(iter(times.values()))))
    if zeros and macs < 1 and any(gains):
        lines.append(
            f"{100 * macs:.3g} % of the multiply-adds are left, because units through which nothing passed were "
            "removed; that helps every program. The remaining zeros help only where torch CSR is the fastest."
        )
    if zeros and not any(gains):
        lines.append(f"{100 * zeros:.4g} % of zeros make it no faster than dense on {tried}. {UNITS}")
    elif zeros and not all(gains):
        lines.append(f"{100 * zeros:.4g} % of zeros make it faster only in some of these cases. {UNITS}")
    elif not any(gains):
        lines.append(f"It is no faster than the base on {tried}: the removed units cost little time here.")
    return lines


def version(name: str) -> str | None:
    """The version of a library; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
