"""The commands: prunus demo | run | predict | inspect | methods | tasks | compare | report | export | bench.

Those that show what there is, without running anything, are in showing.py. tyro reads each command's options from its
parameters, and their help from the docstring.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from prunus import report
from prunus.cli import describe
from prunus.cli.answers import answers_json, answers_table, write_images
from prunus.cli.finished import show
from prunus.cli.folders import new_folder
from prunus.cli.parameters import (
    Limit,
    Minutes,
    Names,
    Real,
    Seeds,
    Share,
    Spec,
    parse_limit,
)
from prunus.cli.run_options import RunOptions
from prunus.cli.showing import inspect, methods, tasks
from prunus.cli.terminal import OUT
from prunus.errors import PrunusError, UserError
from prunus.progress import bar
from prunus.run import (
    METHODS,
    Settings,
    compare_data,
    export_run,
    load_run,
    preview,
    prune,
    quantise_run,
    read_result,
    resolve_auto,
    sole_writer,
)
from prunus.run import bench as benching
from prunus.run import compare as run_board

Common = Annotated[RunOptions, OmitArgPrefixes]


def demo(
    method: str = "taylor",
    out: Path | None = None,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Try everything once, in a minute, without a download: train a small network on scikit-learn's digits,
    halve its multiply-adds (or set 80 % of its weights to zero, if the method removes single weights),
    prove, recover, save and reload the smaller network.

    Examples:
      prunus demo
      prunus demo --method magnitude --out runs/first
      prunus demo --method lookahead

    Args:
        method: The pruning method; `prunus methods` lists them.
        out: The folder for the results; a new one under runs/ if not given.
        seed: The seed of weights, order and random choices; the same seed gives the same numbers.
        resume: Continue the run that was begun in --out.
    """
    # More threads do not help a network this small, and slow it on a busy machine.
    settings = Settings(method=method, seed=seed, threads=1)
    model = "zoo:digits_resnet"
    with nullcontext(out) if out else new_folder(Path("runs/demo")) as folder:
        result = prune(model, data="digits", out=folder, settings=settings, resume=resume, progress=bar)
        show(result.values, folder)


def run(
    out: Path,
    common: Common,
    model: Spec = None,
    data: Spec = None,
    method: str = "taylor",
    budget: Limit = None,
    sparsity: Share = None,
    seed: int = 0,
    resume: bool = False,
    dry_run: bool = False,
    epochs: Real = None,
    minutes: Minutes = None,
) -> None:
    """Make a model smaller: train or fine-tune it, prune it to a budget, prove, recover, test and report.
    A run that was killed continues with the same command and --resume, and ends in the same numbers.

    Examples:
      prunus run --model zoo:resnet20 --data digits --budget macs=0.5 --image-size 32 --out runs/first
      prunus run --model timm:resnet50 --data imagefolder:photos/ --weights mine.safetensors --out small/
      prunus run --model my.net:Net --data hub:cifar10 --method magnitude --set how=uniform --out runs/u
      prunus run --model my.net:Net --data hub:cifar10 --method lookahead --sparsity 0.9 --out runs/zeros
      prunus run --model my.net:Net --data hub:cifar10 --budget latency_ms=0.6 --runtime onnxruntime --out runs/fast

    Args:
        out: The folder for the smaller model, the report and everything that resuming needs.
        common: How a model is made, how images are read, and how networks are trained.
        model: zoo:NAME, torchvision:NAME, timm:NAME, hf:DIR or package.module:callable.
        data: digits, parquet:DIR, imagefolder:DIR, hub:NAME or package.module:callable; of texts text:PLACE, csv:PLACE,
            jsonl:PLACE or parquet:PLACE.
        method: The pruning method; `prunus methods` lists them. auto: the one that our board recommends, which is said
            with its reason.
        budget: The upper limit on macs, params, memory_mb (activations), weights_mb, cache_mb (keys and values) or
            latency_ms: a share of the original's (macs=0.5) or a number; several with commas (params=0.5,cache_mb=0.3).
            Milliseconds of one input are measured here, which takes a minute or two the first time.
        sparsity: The share of single weights to set to zero, instead of a budget. Zeros make files smaller, seldom
            a model faster: measure it with `prunus bench`.
        seed: The seed of weights, order and random choices; the same seed gives the same numbers on the same CPU.
        resume: Continue the run in --out, which must have been begun with the same settings; those that nothing in it
            depends on yet may be corrected.
        dry_run: Show what would be removed from the model as it is, and stop; nothing is trained or written. Methods
            that decide by training or searching have nothing to show.
        epochs: The number of epochs of training after pruning; fractions count, as for all epochs.
        minutes: The time for training after pruning, in place of epochs: some steps are tried first, and as many are
            planned as fit.
    """
    settings = common.settings(method=method, seed=seed, epochs=epochs, minutes=minutes)
    limit = parse_limit(budget, sparsity)
    settings, why = resolve_auto(settings, limit)
    if why:
        OUT.print(why, soft_wrap=True)
    if dry_run:
        graph, found = preview(model, data=data, budget=limit, settings=settings, progress=bar)
        OUT.print(describe.plan(graph, found), soft_wrap=True)
        return
    result = prune(model, data=data, budget=limit, out=out, settings=settings, resume=resume, progress=bar)
    show(result.values, out)


def predict(
    folder: Positional[Path],
    files: Positional[tuple[Path, ...]],
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(needed for images)")] = None,
    top: int = 1,
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Answer files with a finished run's model, read as the run read its own; the data set is not needed. Images are
    classified, or restored and written to --out, and so on, by the task of the run.

    Examples:
      prunus predict runs/first cat.jpg dog.jpg
      prunus predict runs/first photos/*.jpg --top 5 --json
      prunus predict runs/denoised noisy.png --out clean/

    Args:
        folder: The run's folder.
        files: The files.
        out: The folder for answers that are images; each is written as NAME.png.
        top: The number of classes to show for each file, the likeliest first.
        json_output: Print JSON: for each file its answer, such as classes, each with its probability.
    """
    if not files:
        raise UserError("name the files to answer, for example: prunus predict runs/first cat.jpg.")
    if top < 1:
        raise UserError(f"--top should be at least 1, not {top}.")
    found = load_run(folder).answers(files, top)
    written = write_images(files, found, out)
    if json_output:
        OUT.print(answers_json(files, found, written), markup=False, soft_wrap=True)
    else:
        OUT.print(answers_table(files, found, written))


def compare(
    folders: Positional[tuple[Path, ...]],
    common: Common,
    model: Spec = None,
    data: Spec = None,
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(needed to run methods)")] = None,
    methods: Names = METHODS,
    budgets: Names = ("macs=0.5",),
    seeds: Seeds = (0,),
    jobs: int = 1,
    resume: bool = False,
) -> None:
    """Compare methods: run each with every budget and seed from the same base, with equally long training, and show
    quality, costs and milliseconds side by side, with mean and spread over seeds. With folders of finished runs in
    place of --out: show these.

    Every arm is an ordinary run in OUT/runs; OUT/compare.html has the table and pictures, OUT/compare.json the figures.
    A comparison that was killed continues with the same command and --resume; so it also gets more methods or seeds.

    Examples:
      prunus compare --model zoo:resnet20 --data digits --image-size 32 --out runs/first
      prunus compare --model zoo:resnet56 --data hub:cifar10 --weights mine.safetensors --total-epochs 5 --jobs 2 \\
          --methods taylor random magnitude:how=uniform dhp scratch --budgets macs=0.5 macs=0.25 \\
          --seeds 0 1 2 --out runs/board
      prunus compare runs/taylor runs/magnitude runs/random

    Args:
        folders: The folders of finished runs.
        common: How a model is made, how images are read, and how all arms are trained.
        model: zoo:NAME, torchvision:NAME, timm:NAME, hf:DIR or package.module:callable.
        data: digits, parquet:DIR, imagefolder:DIR, hub:NAME or package.module:callable; of texts text:PLACE, csv:PLACE,
            jsonl:PLACE or parquet:PLACE.
        out: The folder of the comparison.
        methods: The methods, each with options if need be: magnitude:how=uniform,round_to=8. scratch: the widths of the
            first method, trained from scratch. The others are compared with the first.
        budgets: The limits, such as macs=0.5 params=0.3 sparsity=0.8; a method takes those of its kind.
        seeds: The seeds; each has a base of its own.
        jobs: The number of runs at once, each in a process of its own.
        resume: Continue the comparison in --out.
    """
    if folders and out:
        raise UserError(
            "give either folders of finished runs, or --out and what to run; see prunus compare --help."
        )
    if folders:
        compare_finished(folders)
        return
    if out is None:
        raise UserError(
            "name the run folders to compare, for example: prunus compare runs/a runs/b. Or say what to run, and "
            "where: prunus compare --model zoo:resnet20 --data digits --methods taylor random --out runs/board."
        )
    found = run_board(
        model,
        data=data,
        out=out,
        methods=methods,
        budgets=budgets,
        seeds=seeds,
        settings=common.settings(),
        jobs=jobs,
        resume=resume,
        progress=bar,
    )
    OUT.print(report.board_table(found.values))
    OUT.print(f"The table and its pictures: {out}/compare.html", soft_wrap=True)
    if found.failed:
        raise PrunusError(
            f"{len(found.failed)} of {len(found.values['arms'])} arms failed, as listed above. Mend the cause, then "
            "repeat the command with --resume."
        )


def compare_finished(folders: tuple[Path, ...]) -> None:
    """Show finished runs side by side; those that differ only in their seed get a mean and a spread."""
    OUT.print(report.comparison({str(folder): read_result(folder) for folder in folders}))
    for line in compare_data(folders):
        OUT.print(line, markup=False, soft_wrap=True)


def rewrite_report(folder: Positional[Path]) -> None:
    """Show a finished run's table again and rewrite its report.html.

    Examples:
      prunus report runs/first

    Args:
        folder: The run's folder.
    """
    values = read_result(folder)
    with sole_writer(folder):
        report.write_page(folder / "report.html", values)
    show(values, folder)


def export(
    folder: Positional[Path], int8: bool = False, openvino: bool = False, executorch: bool = False
) -> None:
    """Write a finished run's model as model.pt2 (torch.export) and, if onnx is installed, model.onnx;
    each file is run and compared with the model before it is kept. The batch size stays free.
    A model that was given as hf:DIR is also written as a folder that transformers loads, if its config can say it
    (`prunus run --uniform`).

    Examples:
      prunus export runs/first
      prunus export runs/first --int8 --openvino

    Args:
        folder: The run's folder.
        int8: Also write model.int8.onnx, in 8 bits, with ranges measured on training data of the run, which are read
            again. The report then says how good it is on the test data, beside 32 bits and the dense model in both.
        openvino: Also write model.xml and model.bin, for OpenVINO.
        executorch: Also write model.pte, for ExecuTorch with XNNPACK; it takes one input at a time.
    """
    result = read_result(folder)
    for line in export_run(folder, result, openvino=openvino, executorch=executorch):
        OUT.print(line, soft_wrap=True)
    if int8:
        for line in quantise_run(folder, result, progress=bar):
            OUT.print(line, soft_wrap=True)


def bench(folder: Positional[Path], seconds: float = 3.0) -> None:
    """Measure how much faster a finished run's model is on this machine: milliseconds before and after pruning, in
    every installed program (torch, torch's sparse matrices, onnxruntime, OpenVINO), side by side. States whether
    it is faster, and writes the figures to bench.json.

    Examples:
      prunus bench runs/zeros
      prunus bench runs/zeros --seconds 20

    Args:
        folder: The run's folder.
        seconds: How many seconds to measure each batch size; more is more reliable on a busy machine.
    """
    record = benching.bench_run(folder, read_result(folder), seconds=seconds, progress=bar)
    OUT.print(report.bench_table(record))
    for line in record["words"]:
        OUT.print(line, soft_wrap=True)


COMMANDS = {
    "demo": demo,
    "run": run,
    "predict": predict,
    "inspect": inspect,
    "methods": methods,
    "tasks": tasks,
    "compare": compare,
    "report": rewrite_report,
    "export": export,
    "bench": bench,
}
DESCRIPTION = """Make trained PyTorch networks smaller and faster, with a proof of what was removed.

Begin with `prunus demo`; `prunus COMMAND --help` shows examples. With --debug, every command shows the traceback of an
error."""
