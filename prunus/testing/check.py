"""The check of a method: its source, its options, its limit, and equal results of killed and repeated runs."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.methods import Method, Options, Pruned, configure, find
from prunus.progress import silent
from prunus.run import RunFolder, checks
from prunus.selection import Budget, Sparsity
from prunus.tasks import Task
from prunus.testing.networks import NETWORKS, tiny_task

KILLED_AT = (0.3, 0.7)  # shares of a method's progress at which it is interrupted


def check_method(
    name: str,
    *,
    options: Sequence[str] = (),
    limit: Budget | Sparsity | None = None,
    networks: Sequence[str] = tuple(NETWORKS),
) -> None:
    """Check that a method fulfils the contract of all methods.

    Its docstring names its source, its options are checked, and it has a default limit. On tiny networks it meets the
    limit, leaves the task's model unchanged, and returns the same, to the bit, when it is repeated with the same seed,
    and when it is interrupted and resumed in the same folder.

    Args:
        name: The method's name, or "package.module:prune" for a method of your own.
        options: Options that the method needs or that make it fast, such as "steps=20".
        limit: The limit to meet; None: the method's default.
        networks: The names in `NETWORKS` to check on.

    Raises:
        AssertionError: A check fails; the message says which, and on which network.
        UserError: There is no such method or option.
    """
    method = find(name)
    config = configure(method.config_class, options, f"option of method {name}")
    asked = config.default_limit() if limit is None else limit
    method.check(asked)
    config.check_together(asked)
    doc = method.doc or ""
    assert doc.strip(), f"{name}: its module needs a docstring, which `prunus methods` shows."
    named = any(word in doc for word in ("arXiv", "doi", "Source: ours"))
    assert named, f"{name}: its docstring should name the paper (arXiv or doi), or say `Source: ours`."
    for network in networks:
        _check_on(method, config, asked, network)


def _check_on(method: Method, config: Options, limit: Budget | Sparsity, network: str) -> None:
    where = f"method {method.name} on the tiny network {network!r}"
    task = tiny_task(network)
    config.check(task.graph, limit)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        steps = [0]
        found = _prune(method, task, config, limit, Path(folder, "whole"), _count_calls(steps))
        if isinstance(limit, Sparsity):
            checks.check_sparsity(limit, found, method.name)
        else:
            checks.check_budget(task.graph, limit, found.keep, method.name)
        same_model = all(value.equal(before[key]) for key, value in task.model.state_dict().items())
        assert same_model, f"{where} changed the task's model; it should work on a copy."
        for share in KILLED_AT if steps[0] else ():
            path = Path(folder, f"killed{share}")
            with suppress(KeyboardInterrupt):
                _prune(method, tiny_task(network), config, limit, path, _interrupt_after(share * steps[0]))
            resumed = _prune(method, tiny_task(network), config, limit, path, silent, resume=True)
            _assert_same(found, resumed, f"{where}, interrupted at {100 * share:.0f} % and started again,")
        again = _prune(method, tiny_task(network), config, limit, Path(folder, "again"), silent)
        _assert_same(found, again, f"{where}, run twice with one seed,")


def _prune(
    method: Method,
    task: Task,
    config: Options,
    limit: Budget | Sparsity,
    path: Path,
    progress: Callable[..., Any],
    resume: bool = False,
) -> Pruned:
    with RunFolder(path, {"seed": 0}, resume=resume, progress=progress) as run:
        run.log("begin")  # without which an interrupted run would leave its folder as it was found
        return method.prune(task, limit, config, run)


def _count_calls(steps: list[int]) -> Callable[..., Any]:
    """Make a progress that counts its calls in steps[0]."""

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
        def step(done: int = 1, note: str = "") -> None:
            steps[0] += 1

        yield step

    return progress


def _interrupt_after(calls: float) -> Callable[..., Any]:
    """Make a progress that raises KeyboardInterrupt after a number of calls, as Ctrl-C does."""
    steps = [0]

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
        def step(done: int = 1, note: str = "") -> None:
            steps[0] += 1
            if steps[0] > calls:
                raise KeyboardInterrupt

        yield step

    return progress


def _assert_same(one: Pruned, other: Pruned, what: str) -> None:
    assert _plain(one.keep) == _plain(other.keep), f"{what} keeps other units."
    for field in ("weights", "masks"):
        ours, theirs = getattr(one, field), getattr(other, field)
        assert (ours is None) == (theirs is None), f"{what} returns {field} only once."
        if ours is not None:
            differing = [key for key in ours if not _equal(ours[key], theirs.get(key))]
            assert not differing, f"{what} ends in other {field}: {', '.join(differing[:3])}."


def _plain(keep: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {axis: list(units) for axis, units in keep.items()}


def _equal(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
