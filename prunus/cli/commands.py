"""The commands: prunus demo | run | predict | inspect | methods | tasks | compare | report | export | bench.

tyro reads each command's options from its parameters, and their help from the docstring.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from rich.text import Text
from tyro.conf import Positional, arg

from prunus import report
from prunus.cli import describe
from prunus.cli.answers import answers_json, answers_table, write_images
from prunus.cli.folders import new_folder
from prunus.cli.parameters import (
    Channels,
    File,
    Limit,
    Minutes,
    Multiple,
    Pairs,
    Part,
    Patterns,
    Precision,
    Readers,
    Real,
    RecipePairs,
    Resizing,
    Runtime,
    Share,
    Size,
    Spec,
    TaskPairs,
    Threads,
    Transform,
    Whole,
)
from prunus.cli.terminal import Terminal
from prunus.errors import UserError
from prunus.graph import trace
from prunus.methods import find
from prunus.progress import bar
from prunus.run import Settings, compare_data, export_run, load_run, preview, prune, read_result, sole_writer
from prunus.run import bench as benching
from prunus.selection import Budget, Sparsity
from prunus.tasks import DEFAULT, find_kind
from prunus.zoo import load_model

# Of several processes only the first prints.
OUT = Terminal(quiet=os.environ.get("RANK", "0") != "0")


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
    model: Spec = None,
    data: Spec = None,
    task: str = DEFAULT,
    method: str = "taylor",
    budget: Limit = None,
    sparsity: Share = None,
    weights: File = None,
    seed: int = 0,
    resume: bool = False,
    dry_run: bool = False,
    base_epochs: Real = None,
    base_lr: Real = None,
    epochs: Real = None,
    minutes: Minutes = None,
    lr: Real = None,
    batch_size: Whole = None,
    precision: Precision = None,
    distill_weight: Real = None,
    recipe: RecipePairs = (),
    runtime: Runtime = None,
    image_size: Size = None,
    mean: Channels = None,
    std: Channels = None,
    crop: Part = None,
    interpolation: Resizing = None,
    transform: Transform = None,
    workers: Readers = None,
    skip_broken: bool = False,
    threads: Threads = None,
    freeze: Patterns = (),
    round_to: Multiple = None,
    options: Pairs = (),
    task_options: TaskPairs = (),
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
        model: zoo:NAME, torchvision:NAME, timm:NAME, hf:DIR or package.module:callable.
        data: digits, parquet:DIR, imagefolder:DIR, hub:NAME or package.module:callable; of texts text:PLACE, csv:PLACE,
            jsonl:PLACE or parquet:PLACE.
        task: The purpose of the model; `prunus tasks` lists them. package.module:callable returns a prunus.Task, which
            has a model and data of its own.
        method: The pruning method; `prunus methods` lists them.
        budget: The upper limit on macs, params, memory_mb or latency_ms: a share of the original's (macs=0.5) or a
            number. Milliseconds of one input are measured here, which takes a minute or two the first time.
        sparsity: The share of single weights to set to zero, instead of a budget. Zeros make files smaller, seldom
            a model faster: measure it with `prunus bench`.
        weights: A .safetensors file, or a .pt file of tensors, to fine-tune from.
        seed: The seed of weights, order and random choices; the same seed gives the same numbers on the same CPU.
        resume: Continue the run in --out, which must have been begun with the same settings; those that nothing in it
            depends on yet may be corrected.
        dry_run: Show what would be removed from the model as it is, and stop; nothing is trained or written. Methods
            that decide by training or searching have nothing to show.
        base_epochs: The number of epochs of training before pruning; 0 uses the weights as they are.
        base_lr: The highest learning rate before pruning.
        epochs: The number of epochs of training after pruning; fractions count, here and above.
        minutes: The time for training after pruning, in place of epochs: some steps are tried first, and as many are
            planned as fit.
        lr: The highest learning rate after pruning.
        batch_size: The number of examples per step, of all processes together.
        precision: The precision of training: bf16 (the default if the hardware supports it) or no (full precision).
        distill_weight: The weight of distillation from the unpruned model in the loss, 0 to 1.
        recipe: A field of a training's recipe; may be given several times. PART is base, search (the method's own
            training) or recover; without it, all three: --recipe recover.optimizer=adamw --recipe recover.lr=1e-3
            --recipe schedule=linear. `prunus tasks NAME` lists the fields.
        runtime: The runtime that measures a budget of latency_ms: torch on the training device, or onnxruntime on
            the processor.
        image_size: The side in pixels to which all images are resized.
        mean: The mean of each channel of the images over 0..1, such as 0.485 0.456 0.406.
        std: The standard deviation of each channel over 0..1.
        crop: The side of the central square that is cut out of an image, as a share of its shorter side.
        interpolation: The way of resizing.
        transform: package.module:callable, which maps a PIL image to a float tensor (C, H, W), in place of all that.
        workers: The number of processes that read images; 0: this one reads. The numbers stay the same.
        skip_broken: Leave out images and texts that cannot be read; otherwise they are listed, and nothing begins.
        threads: The number of threads that torch computes with; on one machine the same number gives the same bits.
        freeze: Patterns of layers that keep all units, such as 'head*' 'layer4.*'.
        round_to: The number of which all widths become multiples.
        options: An option of the method; may be given several times. `prunus methods NAME` lists them.
        task_options: An option of the task, also given as --NAME VALUE. `prunus tasks NAME` lists them.
    """
    options += (f"freeze={','.join(freeze)}",) if freeze else ()
    options += (f"round_to={round_to}",) if round_to is not None else ()
    settings = Settings(
        task=task,
        task_options=task_options,
        method=method,
        options=options,
        seed=seed,
        weights=str(weights.resolve()) if weights else None,
        image_size=image_size,
        mean=mean,
        std=std,
        crop=crop,
        interpolation=interpolation,
        transform=transform,
        workers=workers,
        skip_broken=skip_broken,
        base_epochs=base_epochs,
        base_lr=base_lr,
        epochs=epochs,
        minutes=minutes,
        lr=lr,
        batch_size=batch_size,
        precision=precision,
        distill_weight=distill_weight,
        recipe=recipe,
        runtime=runtime,
        threads=threads,
    )
    limit = parse_limit(budget, sparsity)
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


def inspect(
    model: str,
    data: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    explain: str | None = None,
) -> None:
    """Show what of a model can shrink: its axes, what is coupled, what is fixed and why, and the costs;
    nothing is trained, loaded or changed.

    Examples:
      prunus inspect --model zoo:resnet56
      prunus inspect --model timm:vit_tiny_patch16_224 --explain blocks.0.attn.qkv
      prunus inspect --model my.net:Net --input-shape 3 64 64 --classes 5

    Args:
        model: zoo:NAME, torchvision:NAME, timm:NAME, hf:CONFIG_DIR or package.module:callable.
        data: The data from which to take the image shape and the number of classes.
        input_shape: The channels, height and width of one image.
        classes: The number of classes.
        explain: An axis, layer or parameter to explain in full.
    """
    shape, number = describe.input_of(model, data, input_shape, classes)
    network = load_model(model, classes=number, in_shape=shape)
    graph = trace(network, describe.example(shape))
    OUT.print(Text(graph.explain(explain)) if explain else describe.graph(graph))


def methods(name: Positional[str | None] = None) -> None:
    """List the methods; with a name, show that method's paper and options.

    Examples:
      prunus methods
      prunus methods taylor

    Args:
        name: The method to show in full.
    """
    OUT.print(describe.method(find(name)) if name else describe.methods())


def tasks(name: Positional[str | None] = None) -> None:
    """List the built-in tasks; with a name, show that task's options.

    Examples:
      prunus tasks
      prunus tasks classification

    Args:
        name: The task to show in full.
    """
    OUT.print(describe.task(find_kind(name)) if name else describe.tasks())


def compare(folders: Positional[tuple[Path, ...]]) -> None:
    """Show finished runs side by side; runs that differ only in their seed get a mean and a spread.

    Examples:
      prunus compare runs/taylor runs/magnitude runs/random

    Args:
        folders: The folders of the runs.
    """
    if not folders:
        raise UserError("name the run folders to compare, for example: prunus compare runs/a runs/b.")
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


def export(folder: Positional[Path]) -> None:
    """Write a finished run's model as model.pt2 (torch.export) and, if onnx is installed, model.onnx;
    each file is run and compared with the model before it is kept. The batch size stays free.

    Examples:
      prunus export runs/first

    Args:
        folder: The run's folder.
    """
    for line in export_run(folder, read_result(folder)):
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


def parse_limit(budget: str | None, sparsity: float | None) -> Budget | Sparsity | None:
    """Parse --budget or --sparsity; None if neither was given."""
    if budget is not None and sparsity is not None:
        raise UserError("give --budget (methods that remove units) or --sparsity (single weights), not both.")
    if sparsity is not None:
        return Sparsity(sparsity)
    return None if budget is None else Budget.parse(budget)


def show(values: dict, folder: Path) -> None:
    """Print the table of a run and the paths of its files."""
    OUT.print(report.summary(values))
    if dense := values.get("left_dense"):
        more = f" and {len(dense) - 3} more" if len(dense) > 3 else ""
        hint = f"Left dense, because the pattern does not fit: {', '.join(list(dense)[:3])}{more}."
        OUT.print(hint, soft_wrap=True)
    if "sparsity" in values["after"]:
        hint = f"Zeros make a file smaller, seldom a model faster: `prunus bench {folder}` measures it."
        OUT.print(hint, soft_wrap=True)
    if (minutes := values["settings"].get("minutes")) is not None:
        epochs = values["settings"]["recovery"]["epochs"]
        OUT.print(f"Recovery took {epochs:.3g} epochs, planned for {minutes:g} minutes.", soft_wrap=True)
    OUT.print(f"The smaller model and its report: {folder}/report.html", soft_wrap=True)
