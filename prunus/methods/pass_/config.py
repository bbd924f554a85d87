"""The options of PASS, and what follows from them; see methods/pass_.py."""

import glob
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from prunus import gates
from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Units
from prunus.methods.pass_ import statistics
from prunus.methods.pass_.hypernetwork import load
from prunus.methods.pass_.prompt import How, Kind, fit_size, image_shape
from prunus.methods.pass_.statistics import STATISTICS
from prunus.options import check_choices, no_preview, reject_unused
from prunus.selection import Budget

Prompt = Literal[Kind, "none"]
Masking = Literal["consumer", "product", "product_norms"]
Scope = Literal["global", "per_axis"]
Init = Literal["magnitude", "random"]
Straight = Literal["identity", "clipped"]
Statistic = Literal["rms", "magnitude", "fpgm", "bn_scale"]
ROLES = {  # of the dimensions of parameters that masks act on
    "consumer": ("consumes",),
    "product": ("produces", "consumes"),
    "product_norms": ("produces", "consumes", "scales", "shifts"),
}
assert set(STATISTICS) == set(get_args(Statistic))


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """What they mean:

    prompt      pad: a frame along the border; fixed: a square in the corner; random: a square, elsewhere in every
                step; none: pictures as they are, also for inputs that are no pictures
    prompt_size of the frame's width or the square's side, in pixels; None: 16 of 224, a quarter of the side
    prompt_how  add the prompt to what is there, or replace it
    prompt_speed  how many times as fast as the hypernetwork the prompt learns
    prompted    share of a batch's pictures, rounded, that get the prompt; 0.5 is the two passes of VPNs in one
    statistic   what the hypernetwork reads of a unit's weights, and the start where init=magnitude: rms of all that
                write to it or read from it, or one of Prunus's scores
    recurrent   False: every axis is read alone
    hidden      size of the LSTM's state
    init        magnitude: begin with the statistic as the scores; random: with what a fresh hypernetwork says
    masking     consumer: on the weights that read a unit; product: also on those that write it, as the paper's formula
                says; product_norms: also on norms and biases. The network is the same, its gradients are not: with
                products a unit that is out feels nothing, but what a bias or norm of its own lets through, and comes
                back only if others fall below it
    scope       global: one threshold over all units; per_axis: the same share of every axis
    straight_through  identity: scores get the gradients of their masks; clipped: those within 1 of the threshold do
    steps       of the search; 0 only with a hypernetwork that was loaded
    lr          of the hypernetwork, at first: half a cosine leads to 0. Above 3e-4 masks flicker
    batch_size  None: as the task advises
    snapshots   how many times, beside the start, the network as it would be then is tried on held_out pictures of the
                training set; the best is returned. 0: the last
    held_out    pictures; 15 % of the training set at most
    train_also  patterns of parameters that learn too, such as a new head.*
    hypernetwork  file of one that was learned on other data with the same network; the search goes on from it

    lr, batch_size and held_out are a run's: your own loop has its optimiser, its batches and its `score`.
    Raises UserError for an option that is out of range or not known.
    """

    prompt: Prompt = "pad"
    prompt_size: int | None = None
    prompt_how: How = "add"
    prompt_speed: float = 100.0
    prompted: float = 1.0
    statistic: Statistic = "rms"
    recurrent: bool = True
    hidden: int = 64
    init: Init = "magnitude"
    masking: Masking = "consumer"
    scope: Scope = "global"
    straight_through: Straight = "identity"
    steps: int = 300
    lr: float = 1e-4
    batch_size: int | None = None
    snapshots: int = 10
    held_out: int = 2000
    train_also: tuple[str, ...] = ()
    hypernetwork: str | None = None

    def __post_init__(self):
        if self.prompt is None:
            object.__setattr__(self, "prompt", "none")
        check_choices(self)
        ranges = {"prompt_size": 1, "prompt_speed": 0, "prompted": 0, "hidden": 1, "steps": 0, "lr": 0}
        ranges |= {"batch_size": 1, "snapshots": 0, "held_out": 1}
        for name, least in ranges.items():
            value, most = getattr(self, name), 1 if name == "prompted" else math.inf
            kind = (int, float) if name in ("prompt_speed", "prompted", "lr") else int
            if value is not None and not (isinstance(value, kind) and least <= value <= most):
                what = f"a {'whole ' if kind is int else ''}number in {least}..{'' if most > 1 else most}"
                raise UserError(f"{name} should be {what}, but is {value!r}.")
        if not self.prompt_speed:
            raise UserError("prompt_speed should be above 0; to go without a prompt, say prompt=none.")
        if isinstance(self.train_also, str):
            raise UserError(f"train_also: expected a list of patterns, got the text {self.train_also!r}.")

    def preview(self) -> "Config":
        """There is none: what goes is found by training."""
        raise no_preview("pass", "training", "the magnitudes that it begins with: --method magnitude")

    def check(self, graph: Graph, limit: Budget) -> None:
        """Raise UserError for options that conflict, or do not go with this network, FileError for a hypernetwork that
        does not fit it, BudgetError if no widths meet the limit."""
        self.check_options(graph)
        super().check(graph, limit)

    def check_options(self, graph: Graph) -> None:
        """Raise what `check` does, whatever the limit."""
        if not self.steps and not self.hypernetwork:
            raise UserError("steps=0 learns nothing: give steps, or a hypernetwork that was learned before.")
        if self.how != "global":
            raise UserError(
                f"how={self.how}: pass ranks by its own scores; scope=per_axis keeps equal shares."
            )
        of_search = ("lr", "batch_size", "snapshots", "held_out", "masking", "straight_through", "train_also")
        of_prompt = ("prompt_size", "prompt_how", "prompt_speed", "prompted")
        reject_unused(
            self,
            [
                ("prompt=none", self.prompt == "none", of_prompt),
                ("snapshots=0", not self.snapshots, ("held_out",)),
                ("steps=0", not self.steps, of_search),
            ],
        )
        self.learning(graph)
        described = self.described(graph)
        if self.hypernetwork:
            load(self.hypernetwork, described)

    def pictures(self, graph: Graph) -> tuple[int, int, int] | None:
        """The shape (C, H, W) of the pictures that get a prompt; None: there is none. Raises UserError if the network
        reads no pictures."""
        return None if self.prompt == "none" else image_shape(graph.example)

    def learning(self, graph: Graph) -> list[str]:
        """The parameters that train_also names, as the graph does. Raises UserError for a pattern that names none."""
        found: dict[str, None] = {}
        for pattern in self.train_also:
            matching = [n for n in graph.layouts if n in graph.parameters and fnmatchcase(n, pattern)]
            if not matching:
                raise UserError(f"train_also pattern {pattern!r} matches no parameter.")
            found |= dict.fromkeys(matching)
        return list(found)

    def names(self, graph: Graph) -> list[str]:
        """The axes that are searched, in the order of their computation."""
        whole = self.whole(graph)
        return statistics.order_axes(graph, [name for name in graph.axes if name not in whole])

    def described(self, graph: Graph) -> dict:
        """What a hypernetwork for this network belongs to, as plain JSON. Raises UserError for a prompt that does not
        fit on the pictures."""
        prompt, shape = None, self.pictures(graph)
        if shape:
            size = fit_size(shape, self.prompt, self.prompt_size)
            prompt = [self.prompt, size, self.prompt_how, *shape]
        signature = [[name, graph.axes[name].size] for name in self.names(graph)]
        options = {name: getattr(self, name) for name in ("hidden", "recurrent", "init", "statistic")}
        return {"axes": signature, "prompt": prompt, **options}

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the dimensions of parameters that masks act on."""
        return ROLES[self.masking]

    def whole(self, graph: Graph) -> dict[str, str]:
        """The axes that are left alone because masks at those who read them would not be exact, and why."""
        return gates.inexact_axes(graph, ROLES["consumer"])

    def frozen(self, graph: Graph) -> tuple[str, ...]:
        """Patterns of what keeps everything: `freeze`, and the axes left alone."""
        return (*self.freeze, *map(glob.escape, self.whole(graph)))

    def rules(self, graph: Graph) -> dict[str, Any]:
        """Return the options of `select`; axes that are left alone count as frozen."""
        how = "uniform" if self.scope == "per_axis" else "global"
        return super().rules(graph) | {"freeze": self.frozen(graph), "how": how}
