"""The arms of a comparison: every method with every budget that it takes, and every seed.

    taylor                      a method
    magnitude:how=uniform       with options, separated by commas
    mine.method:prune:share=2   one of the user's own
    taylor:repair=off,steps=3   with settings of its own, if the method has no options of these names
    scratch                     the widths of the first arm of its budget, initialised again and trained from scratch

Options and settings that are asked of all arms go to those that have them; their own come before.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from prunus.errors import UserError
from prunus.methods import Method, find, option_types
from prunus.run.advice import resolve_auto
from prunus.run.recipes import part_of
from prunus.run.settings import Settings, check_steps, resolve_budget, resolve_method, resolve_repair
from prunus.selection import Budget, Sparsity
from prunus.tasks import Task

Limit = Budget | Sparsity
SCRATCH = "scratch"
OPTIONS = re.compile(r"(?P<method>[^=]*?):(?P<options>[\w.-]+=.*)")
RUNS, BASES = "runs", "bases"  # folders in that of a comparison
LONGEST = 100  # characters of an arm's name
OF_EACH_ARM = {  # settings that a comparison sets itself, and what to give instead
    "method": "the methods to compare",
    "seed": "seeds",
    "minutes": "total_epochs, which are the same for all arms,",
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of a comparison.

    Args:
        label: The method with its options, as it was asked for.
        limit: The budget or sparsity.
        seed: The seed.
        settings: The settings of its run.
        after: The arm whose widths it takes; None: it needs no other.
    """

    label: str
    limit: Limit
    seed: int
    settings: Settings
    after: "Arm | None" = None

    @property
    def name(self) -> str:
        """The name of its folder: such as taylor-macs=0.5-seed0."""
        text = f"{self.label}-{_as_given(self.limit)}-seed{self.seed}"
        plain = re.sub(r"[^\w.=,-]", "-", text)
        if plain == text.replace(":", "-") and len(plain) <= LONGEST:
            return plain
        return f"{plain[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def plan_arms(
    methods: Sequence[str],
    budgets: Sequence[str | Limit],
    seeds: Sequence[int],
    settings: Settings,
    folder: Path,
    task: Task | None = None,
) -> list[Arm]:
    """Make the arms, and check what can be checked before anything is read.

    Args:
        methods: The methods, as above.
        budgets: The limits, such as "macs=0.5" or "sparsity=0.8"; a method takes those of its kind.
        seeds: The seeds.
        settings: What all runs share. Its options go to the methods that have them.
        folder: The folder of the comparison.
        task: A task of the user's own; None: the one that the settings name.

    Returns:
        The arms, in the order of budgets, methods, seeds; each once.

    Raises:
        UserError: A method, an option or a limit is wrong, or the settings say what differs from arm to arm.
    """
    for what, given in {"method": methods, "budget": budgets, "seed": seeds}.items():
        if not given:
            raise UserError(f"a comparison needs at least one {what}.")
    limits = [parse_limit(each) if isinstance(each, str) else each for each in budgets]
    asked = [replace_auto(text, limit, settings, task) for limit in limits for text in methods]
    kinds = {text: find_kind_of(text) for text, _ in asked}
    check_limits(limits, [find(kind) for kind in kinds.values()], settings.runtime)
    check_options(settings.options, list(kinds.values()))
    arms: dict[str, Arm] = {}
    for text, limit in asked:
        for seed in seeds if isinstance(limit, find(kinds[text]).limit) else ():
            arm = make_arm(text, limit, seed, settings, folder, kinds[text], list(arms.values()))
            arms.setdefault(arm.name, arm)
    return list(arms.values())


def replace_auto(text: str, limit: Limit, settings: Settings, task: Task | None) -> tuple[str, Limit]:
    """Return a method as it was asked for, `auto` replaced by the recommended one, with its limit."""
    method, options = parse_method(text)
    found, _ = resolve_auto(replace(settings, method=method, options=options), limit, task)
    if found.method == method:
        return text, limit
    return ":".join([found.method, *([",".join(found.options)] if found.options else [])]), limit


def find_kind_of(text: str) -> str:
    """Return the name of the method that an arm runs."""
    method, options = parse_method(text)
    if method != SCRATCH:
        return method
    if options:
        raise UserError(
            f"{text}: scratch takes no options; it has the widths of the first arm of its budget."
        )
    return "structure"


def split_settings(options: Sequence[str], known: set[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Split the options of an arm into those of its method, which are known, and the settings that only its run has."""
    of_run: dict[str, Any] = {}
    for name, _, text in (pair.partition("=") for pair in options):
        if name == "repair" and name not in known:
            of_run[name] = text
        elif name == "steps" and name not in known:
            if not text.isdecimal():
                raise UserError(f"steps should be a whole number, but is {text!r}.")
            of_run[name] = int(text)
    return tuple(pair for pair in options if pair.partition("=")[0] not in of_run), of_run


def make_arm(
    text: str, limit: Limit, seed: int, shared: Settings, folder: Path, kind: str, before: list[Arm]
) -> Arm:
    """Make one arm; `before` are those already made. UserError if its options are wrong or conflict."""
    method, options = parse_method(text)
    known = {name for name, _ in option_types(find(kind).config_class)}
    options, of_run = split_settings(options, known)
    own = {option.partition("=")[0] for option in options}
    of_all = [
        pair for pair in shared.options if (name := pair.partition("=")[0]) in known and name not in own
    ]
    settings = replace(shared, method=kind, options=(*of_all, *options), seed=seed)
    if isinstance(limit, Sparsity):
        settings = replace(settings, repair=None, steps=1)
    if "latency_ms" not in limit.limits:
        settings = replace(settings, runtime=None)
    first = None
    if method == SCRATCH:
        first = next((arm for arm in before if (arm.limit, arm.seed) == (limit, seed)), None)
        if first is None:
            raise UserError(
                "scratch has the widths of the first arm of its budget; name a method that removes units before it."
            )
        of = (folder / RUNS / first.name).resolve()
        settings = replace(settings, options=(f"of={of}", "weights=anew"), lr=None, repair=None, steps=1)
    recipe = tuple(text for text in shared.recipe if concerns(text, settings))
    settings = replace(settings, recipe=recipe, **of_run)
    resolve_budget(settings, limit)
    resolve_repair(settings)
    check_steps(settings, limit)
    return Arm(label=text, limit=limit, seed=seed, settings=settings, after=first)


def concerns(text: str, settings: Settings) -> bool:
    """Return whether a field of a recipe, asked of all arms, concerns one.

    A search that trains nothing has no recipe, and a training from scratch its own learning rate.
    """
    _, config = resolve_method(settings)
    if part_of(text) == "search":
        return config.fixed_in_search() is not None
    return config.recovery_purpose == "recover" or text.partition("=")[0].strip() != "recover.lr"


def parse_method(text: str) -> tuple[str, tuple[str, ...]]:
    """Parse a method as it is written for a comparison.

    Args:
        text: Such as "taylor", "magnitude:how=uniform,round_to=8" or "package.module:prune:share=2". A part between
            commas without "=" belongs to the option before it: "taylor:freeze=head*,stem*".

    Returns:
        The method's name, and its options, each "name=value".
    """
    found = OPTIONS.fullmatch(text)
    if found is None:
        return text, ()
    pairs: list[str] = []
    for part in found["options"].split(","):
        if "=" in part or not pairs:
            pairs.append(part)
        else:
            pairs[-1] += f",{part}"
    return found["method"], tuple(pairs)


def parse_limit(text: str) -> Limit:
    """Parse a limit such as "macs=0.5" or "sparsity=0.8"; UserError for anything else."""
    name, _, number = text.partition("=")
    return Sparsity.parse(number) if name == "sparsity" else Budget.parse(text)


def check_shared(settings: Settings) -> None:
    """Raise UserError if the settings of all arms say what differs from arm to arm."""
    usual = {field.name: field.default for field in fields(Settings)}
    for name, instead in OF_EACH_ARM.items():
        if getattr(settings, name) != usual[name]:
            raise UserError(
                f"{name}={getattr(settings, name)}: a comparison takes {instead} in its place; leave it out."
            )

    if "epochs" in settings.asked.of("recover"):
        raise UserError(
            "a comparison takes total_epochs, which are the same for all arms, in place of epochs of recovery; leave "
            "those out."
        )


def check_limits(limits: Sequence[Limit], methods: Sequence[Method], runtime: str | None) -> None:
    """Raise UserError if a method takes none of the limits, or a limit no method, or nothing is timed in a runtime."""
    for method in methods:
        if not any(isinstance(limit, method.limit) for limit in limits):
            method.check(limits[0])
    for limit in limits:
        if not any(isinstance(limit, method.limit) for method in methods):
            raise UserError(f"none of the methods takes {_as_given(limit)}; name one that does.")
    if runtime is not None and all("latency_ms" not in limit.limits for limit in limits):
        raise UserError(f"runtime={runtime} needs a budget of latency_ms; leave out the runtime.")


def _as_given(limit: Limit) -> str:
    """A limit as `--budgets` takes it."""
    return ",".join(f"{name}={value:g}" for name, value in limit.limits.items())


def check_options(options: Sequence[str], methods: Sequence[str]) -> None:
    """Raise UserError if an option for all methods is known to none of them."""
    known = {name for method in methods for name, _ in option_types(find(method).config_class)}
    for pair in options:
        if pair.partition("=")[0] not in known:
            raise UserError(f"{pair}: none of {', '.join(dict.fromkeys(methods))} has such an option.")
