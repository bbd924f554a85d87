"""One listed model through every stage: traced, halved on every axis, proved, saved, exported, trained a step.

    python benchmarks/coverage_stages.py LIST NAME

Started by coverage.py, in a process of its own. Prints a JSON line for each stage, as it ends, and one for the peak
memory; a stage whose needs failed is not tried.
"""

import copy
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage_models
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.graph import axes, named_tensors, output_tensors, quiet_forward
from prunus.inputs import call

EXACT = 1e-6  # relative, in double precision
SAME = 1e-4  # relative, in single precision: the same weights through another program
AFFINE = ("native_layer_norm", "native_group_norm", "_fused_rms_norm")  # in that check
ROUNDS, LONG = 3, 5.0  # of what is timed against something else, and seconds that end them


Shapes = list[tuple[int, ...]]


@dataclass
class Work:
    """What the stages make, one after the other."""

    kind: str
    name: str
    model: nn.Module = field(default_factory=nn.Module)
    example: Any = None
    training: Any = None
    graph: Any = None
    keep: dict[str, list[int]] = field(default_factory=dict)
    small: nn.Module = field(default_factory=nn.Module)
    warnings: list[str] = field(default_factory=list)


def build(work: Work) -> dict[str, Any]:
    case = coverage_models.build(work.kind, work.name)
    work.model, work.example, work.training = case.model, case.example, case.training
    return {"params": sum(parameter.numel() for parameter in work.model.parameters())}


def trace(work: Work) -> dict[str, Any]:
    both = None if work.training is None else {"eval": work.example, "train": work.training}
    with warnings_of_prunus() as warned:
        work.graph = prunus.trace(work.model, work.example, modes=both)
    work.warnings = warned
    return {
        "axes": len(work.graph.axes),
        "modes": list(modes(work)),
        "params_left": 1 - work.graph.coverage(),
        "warnings": warned,
    }


def modes(work: Work) -> dict[str, Any]:
    """The modes that were traced, each with its example."""
    return getattr(work.graph, "modes", {"eval": work.example})


def cut(work: Work) -> dict[str, Any]:
    """Keep the better half of every axis, by L2."""
    scores = prunus.scores.magnitude(work.model, work.graph, p=2)
    work.keep = halves(work.graph, scores)
    work.small = prunus.shrink(work.model, work.graph, work.keep, verify="off").eval()
    whole, left = (prunus.macs(work.graph, keep) for keep in (None, work.keep))
    return {"macs": whole, "macs_left": left / whole if whole else 1.0}


def halves(graph: Any, scores: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {
        name: scores[name].topk(max(1, axis.size // 2)).indices.sort().values.tolist()
        for name, axis in graph.axes.items()
    }


def proof(work: Work) -> dict[str, Any]:
    """Over all modes that were traced."""
    found = prunus.verify(work.model, work.graph, work.keep, work.small)
    require(found.holds, f"differs by {found.max_abs_error:.2g}, allowed {found.tolerance:.0e}")
    return {"max_abs_error": found.max_abs_error, "tolerance": found.tolerance}


def runs(work: Work) -> dict[str, Any]:
    """The outputs keep their shapes."""
    whole, small = (describe(model, work.example)[0] for model in (work.model, work.small))
    require(same_shapes(whole, small), f"outputs of {small}, not {whole}")
    return {}


def counted(work: Work) -> dict[str, Any]:
    """The closed form of the multiply-adds is what torch counts."""
    closed = [prunus.macs(work.graph), prunus.macs(work.graph, work.keep)]
    counts = [describe(model, work.example)[1] for model in (work.model, work.small)]
    if closed != counts and any("traced with real tensors" in line for line in work.warnings):
        return {
            "macs_left": closed[1] / closed[0],
            "not_applicable": "how many boxes there are depends on the weights",
        }
    require(closed == counts, f"multiply-adds {closed} by the closed form, {counts} by torch's counter")
    return {"macs": counts[0], "macs_left": counts[1] / max(1, counts[0])}


def exact(work: Work) -> dict[str, Any]:
    """The small model against the original with zeros in the removed units, written here, not by Prunus.

    Norms that take statistics over units are made affine on both sides, as far as torch's functions tell.
    """
    zeroed, small = (copy.deepcopy(model).double() for model in (work.model, work.small))
    tensors = named_tensors(zeroed)
    for name, axis in work.graph.axes.items():
        stays = torch.zeros(axis.size, dtype=torch.bool)
        stays[work.keep[name]] = True
        for member in work.graph.members(name):
            tensor = tensors[member.tensor]
            if tensor.is_floating_point():
                tensor.data.index_fill_(member.dim, member.index[~stays].flatten(), 0)
    example = tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, work.example)
    try:
        with quiet_forward(), AffineNorms():
            expected = call(zeroed, fresh(example))
            error = difference(call(small, fresh(example)), expected)
    except RuntimeError as failure:
        return {"exact": None, "why": f"does not run in double precision: {first_line(failure)}"}
    if not any(tensor.numel() for tensor in output_tensors(expected)):
        return {"exact": None, "why": "nothing is found on random weights"}
    if error <= EXACT:
        return {"exact": True, "error": error}
    rooted = {
        op.module for op in work.graph.ops if op.name == "rsqrt"
    }  # norms in elementary operators, made affine
    mixing = [
        op
        for op in work.graph.ops
        if op.mixes and op.name not in AFFINE and op.module not in rooted
        if any(axes.leaves(layout) for tag in op.tags() for layout in tag.dims)
    ]
    if mixing:
        return {"exact": None, "why": f"not checked: {mixing[0]} mixes units"}
    raise AssertionError(f"differs from the original with zeros by {error:.2g}, and no operator mixes units")


class AffineNorms(TorchFunctionMode):
    """Lets norms over channels scale and shift, and nothing else, so that zeros may stand for removed units."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (
            F.layer_norm,
            torch.layer_norm,
            F.group_norm,
            torch.group_norm,
            F.rms_norm,
            torch.rms_norm,
        ):
            return self.affine(func, *args, **kwargs)
        if func in (torch.rsqrt, torch.Tensor.rsqrt):
            return torch.ones_like(args[0])
        return func(*args, **kwargs)

    @staticmethod
    def affine(
        func: Any, x: torch.Tensor, over: Any, weight: Any = None, bias: Any = None, *_: Any, **__: Any
    ) -> Any:
        if func in (F.group_norm, torch.group_norm):
            weight, bias = (t if t is None else t.view(-1, *[1] * (x.dim() - 2)) for t in (weight, bias))
        x = x if weight is None else x * weight
        return x + bias if isinstance(bias, torch.Tensor) else x


def saved(work: Work) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        prunus.save(folder, work.small, work.keep, work.graph)
        loaded = prunus.load(folder, work.model).eval()
    with quiet_forward():
        error = difference(call(loaded, fresh(work.example)), call(work.small, fresh(work.example)))
    require(error == 0, f"loaded, it gives other outputs, by {error:.2g}")
    return {}


def exported(work: Work) -> dict[str, Any]:
    positional = not isinstance(work.example, dict)
    example = (tuple(work.example), {}) if positional else ((), work.example)
    with torch.no_grad():
        try:
            program = torch.export.export(work.small, *example, strict=False).module()
        except Exception:
            why = not_exported(work, example)
            if not why:
                raise
            return {"not_applicable": f"torch.export refuses the original too: {why}"}
        error = difference(call(program, fresh(work.example)), call(work.small, fresh(work.example)))
    require(error <= SAME, f"exported, it gives other outputs, by {error:.2g}")
    return {}


def not_exported(work: Work, example: tuple[Any, ...]) -> str:
    """Why torch.export refuses the original; empty if it does not."""
    try:
        torch.export.export(work.model, *example, strict=False)
    except Exception as error:  # as above
        return first_line(error)
    return ""


def trained(work: Work) -> dict[str, Any]:
    """A step of SGD on the sum of squares of the outputs, in the first way in which the original runs."""
    twice = tree_map_only(torch.Tensor, lambda tensor: torch.cat([tensor, tensor]), work.example)
    ways = {"train, batch of 2": (True, twice), "train": (True, work.example), "eval": (False, work.example)}
    if work.training is not None:
        ways = {"train": (True, work.training)}
    why = ""
    for way, (training, example) in ways.items():
        try:
            with torch.no_grad():
                whole = output_tensors(call(copy.deepcopy(work.model).train(training), fresh(example)))
        except Exception as error:  # a detector asks for targets, a norm for more than one value
            why = first_line(error)
            continue
        small = copy.deepcopy(work.small).train(training)
        optimiser = torch.optim.SGD(small.parameters(), 1e-6)
        outputs = output_tensors(call(small, fresh(example)))
        shapes = [[tuple(tensor.shape) for tensor in each] for each in (whole, outputs)]
        require(same_shapes(*shapes), f"{way}: outputs of {shapes[1]}, not {shapes[0]}")
        parts = [tensor for tensor in outputs if tensor.requires_grad]
        require(parts, "no output has a gradient")
        sum(part.square().sum() for part in parts).backward()
        optimiser.step()
        return {"way": way} | ({} if training else {"why_not_training": why})
    raise AssertionError(f"the original runs in no mode: {why}")


def timed(work: Work) -> dict[str, Any]:
    """The proof over the plain forwards it needs, two for each mode, and the scores over one read of the weights."""
    models = [copy.deepcopy(model) for model in (work.model, work.small)]

    def forwards() -> None:
        for mode, example in modes(work).items():
            for model in models:
                call(model.train(mode == "train"), fresh(example))

    with torch.no_grad():
        plain = cpu_seconds(forwards)
        proving = cpu_seconds(lambda: prunus.verify(work.model, work.graph, work.keep, work.small))
        reading = cpu_seconds(lambda: [p.square().sum().item() for p in work.model.parameters()])
        scoring = cpu_seconds(lambda: prunus.scores.magnitude(work.model, work.graph, p=2))
    return {
        "forwards_s": plain,
        "proof_s": proving,
        "proof_over_forwards": proving / plain,
        "read_s": reading,
        "scores_s": scoring,
        "scores_over_read": scoring / reading,
    }


STAGES: dict[str, tuple[Callable[[Work], dict[str, Any]], str]] = {  # what is done, and what it needs
    "build": (build, ""),
    "trace": (trace, "build"),
    "cut": (cut, "trace"),
    "proof": (proof, "cut"),
    "runs": (runs, "cut"),
    "counted": (counted, "runs"),
    "exact": (exact, "runs"),
    "saved": (saved, "runs"),
    "trained": (trained, "runs"),
    "exported": (exported, "runs"),
    "timed": (timed, "proof"),
}


# ------------------------------------------------------------------------------------------------ helpers
def require(holds: Any, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def describe(model: nn.Module, example: Any) -> tuple[Shapes, int]:
    """The shapes of the outputs, and the multiply-adds that torch counts, attention's where it is not fused."""
    model = copy.deepcopy(model).requires_grad_(
        False
    )  # the counter fails on a parameter that a module is given
    with quiet_forward(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        shapes = [tuple(tensor.shape) for tensor in output_tensors(call(model, fresh(example)))]
    return shapes, counter.get_total_flops() // 2


def same_shapes(a: Shapes, b: Shapes) -> bool:
    """Whether the shapes are the same but for the first dimension: how many objects are found depends on weights."""
    return [shape[1:] for shape in a] == [shape[1:] for shape in b]


def fresh(example: Any) -> Any:
    """A copy, because a forward pass may write to its arguments."""
    return tree_map_only(torch.Tensor, torch.clone, example)


def difference(got: Any, expected: Any) -> float:
    """Largest difference of two outputs over the largest value; infinite if their shapes differ."""
    pairs = list(zip(output_tensors(got), output_tensors(expected), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    numbers = [(a.double().nan_to_num(), b.double().nan_to_num()) for a, b in pairs if a.numel()]
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in numbers), default=0.0)


def cpu_seconds(act: Callable[[], object]) -> float:
    """The median of a few rounds, after one to warm up; fewer where they take long."""
    times: list[float] = []
    while len(times) <= ROUNDS and sum(times) < LONG:
        start = time.process_time()
        act()
        times.append(time.process_time() - start)
    return statistics.median(times[1:] or times)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


@contextmanager
def warnings_of_prunus() -> Iterator[list[str]]:
    """Collect the first lines of the warnings that Prunus gives, not those of the libraries."""
    home, found = str(Path(prunus.__file__).parent), []

    def show(message: Any, *_: Any, **__: Any) -> None:
        callers = [frame.filename for frame in traceback.extract_stack()[:-1]]
        innermost = next(name for name in reversed(callers) if not name.endswith("warnings.py"))
        if innermost.startswith(home):
            found.append(str(message).splitlines()[0])

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield found


@contextmanager
def lines_of_ours() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Keep standard output for our lines; what libraries print goes to standard error."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    yield lambda line: print(json.dumps(line), file=own, flush=True)
    own.close()


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    work, done = Work(*sys.argv[1:3]), {""}
    with lines_of_ours() as say:
        for name, (act, needs) in STAGES.items():
            if needs not in done:
                continue
            say({"begins": name})
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                line = {"ok": True} | act(work)
                done.add(name)
            except Exception as error:  # any error of the model, of torch or of Prunus is a result
                line = {"ok": False, "error": first_line(error)}
            line |= {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
            say({"stage": name} | line)
        say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


if __name__ == "__main__":
    main()
