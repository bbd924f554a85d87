"""The options of PASS, and the rules that follow from them."""

import glob
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args

from prunus import gates
from prunus.data import Data, Split
from prunus.errors import UserError
from prunus.graph import Graph
from prunus.methods import Units, check_loss
from prunus.methods.pass_ import statistics
from prunus.methods.pass_.hypernetwork import load
from prunus.methods.pass_.prompt import How, Kind, fit_size, image_shape
from prunus.methods.pass_.statistics import STATISTICS
from prunus.options import Count, Range, Rate, Share, no_preview, reject_unused
from prunus.selection import Budget, Sparsity
from prunus.tasks import Task

Prompt = Literal[Kind, "none"]
Masking = Literal["consumer", "product", "product_norms"]
Scope = Literal["global", "per_axis"]
Init = Literal["magnitude", "random"]
Straight = Literal["identity", "clipped"]
Statistic = Literal["rms", "magnitude", "fpgm", "bn_scale"]
Speed = Annotated[float, Range(0, above=True, hint="to go without a prompt, say prompt=none")]
Times = Annotated[int, Range(0)]
ROLES = {  # roles of the dimensions of parameters that masks act on
    "consumer": ("consumes",),
    "product": ("produces", "consumes"),
    "product_norms": ("produces", "consumes", "scales", "shifts"),
}
MOST_HELD_OUT = 0.15  # of the training examples
assert set(STATISTICS) == set(get_args(Statistic))


@dataclass(frozen=True, kw_only=True)
class Config(Units):
    """The options of PASS.

    lr, batch_size and held_out are for runs; in a training loop of your own the optimiser, the batches and `score`
    replace them.

    Args:
        prompt: "pad": a frame along the border of the image; "fixed": a square in the corner; "random": a square at
            another place in every step; "none": images as they are, also for inputs that are not images.
        prompt_size: The frame's width or the square's side, in pixels; None: a frame of 1/14 of the side (16 for
            224), a square of 1/4.
        prompt_how: Whether the prompt is added to the image ("add") or replaces its pixels ("replace").
        prompt_speed: The prompt's learning rate, as a multiple of the hypernetwork's.
        prompted: The share of a batch's images, rounded, that get the prompt; 0.5 is the two passes of VPNs in one.
        statistic: The statistic of a unit's weights that the hypernetwork reads, and that the scores begin with if
            init=magnitude: "rms" of all weights that write to the unit or read it, or one of Prunus's scores.
        recurrent: Whether the hypernetwork has a state; False: every axis is read independently.
        hidden: The size of the LSTM's state.
        init: "magnitude": the scores begin as the statistic; "random": as a new hypernetwork's output.
        masking: "consumer": masks act on the weights that read a unit; "product": also on those that write it, as in
            the paper's formula; "product_norms": also on norms and biases. The masked network is the same, its
            gradients are not: with products a masked unit gets no gradient except through its own bias or norm, and
            returns only if others fall below it.
        scope: "global": one threshold over all units; "per_axis": the same share of every axis.
        straight_through: "identity": scores get the gradients of their masks; "clipped": only scores within 1 of the
            threshold do.
        steps: The number of steps of the search; 0 only with a loaded hypernetwork.
        lr: The hypernetwork's initial learning rate, which falls to 0 along half a cosine. Above 3e-4 masks flicker.
        batch_size: The batch size; None: as the task advises.
        snapshots: How often, besides the start, the network is evaluated on held-out images of the training set; the
            best snapshot is returned. 0: the last state.
        held_out: The number of held-out images, at most 15 % of the training set.
        train_also: Patterns of parameters that are trained, too, such as "head.*" for a new head.
        hypernetwork: The file of a hypernetwork that was trained on other data with the same network; the search
            continues from it.

    Raises:
        UserError: An option is out of range or unknown.
    """

    prompt: Prompt = "pad"
    prompt_size: Count | None = None
    prompt_how: How = "add"
    prompt_speed: Speed = 100.0
    prompted: Share = 1.0
    statistic: Statistic = "rms"
    recurrent: bool = True
    hidden: Count = 64
    init: Init = "magnitude"
    masking: Masking = "consumer"
    scope: Scope = "global"
    straight_through: Straight = "identity"
    steps: Times = 300
    lr: Rate = 1e-4
    batch_size: Count | None = None
    snapshots: Times = 10
    held_out: Count = 2000
    train_also: tuple[str, ...] = ()
    hypernetwork: str | None = None

    def __post_init__(self):
        if self.prompt is None:
            object.__setattr__(self, "prompt", "none")
        super().__post_init__()

    def fixed_in_search(self) -> tuple[str, ...] | None:
        """Return what options say here (epochs as steps), and what has no use: an average, a teacher. None without
        steps."""
        fixed = ("epochs", "batch_size", "lr", "ema_decay", "distill_weight", "distill_temperature")
        return fixed if self.steps else None

    def preview(self) -> "Config":
        """Raise UserError, because units are chosen by training."""
        raise no_preview("pass", "training", "the magnitudes that it begins with: --method magnitude")

    def check_task(self, task: Task) -> None:
        """Raise UserError if images differ in size, none can be held out to choose a snapshot with, or the task has no
        loss in evaluation mode, in which the search runs the network."""
        check_loss(task, "pass", "another method, such as magnitude or dhp")
        shape = self.pictures(task.graph)
        if shape is not None:
            check_sizes(task.data, shape)
        if self.snapshots and self.steps:
            try:
                task.data.train.hold_out(MOST_HELD_OUT, 0)
            except UserError as error:
                raise UserError(f"{error} Or keep pass, with snapshots=0.") from error

    def check_together(self, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict or have no effect."""
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

    def check(self, graph: Graph, limit: Budget | Sparsity) -> None:
        """Raise UserError if options conflict or do not suit the network, FileError if the hypernetwork does not fit,
        BudgetError if no widths meet the limit."""
        self.check_together(limit)
        self.learning(graph)
        described = self.described(graph)
        if self.hypernetwork:
            load(self.hypernetwork, described)
        super().check(graph, limit)

    def pictures(self, graph: Graph) -> tuple[int, int, int] | None:
        """Return the shape (C, H, W) of the images that get a prompt; None without a prompt. UserError if the network
        does not read images."""
        return None if self.prompt == "none" else image_shape(graph.example)

    def learning(self, graph: Graph) -> list[str]:
        """Return the parameters that train_also selects; UserError if a pattern matches none."""
        found: dict[str, None] = {}
        for pattern in self.train_also:
            matching = [n for n in graph.layouts if n in graph.parameters and fnmatchcase(n, pattern)]
            if not matching:
                raise UserError(f"train_also pattern {pattern!r} matches no parameter.")
            found |= dict.fromkeys(matching)
        return list(found)

    def names(self, graph: Graph) -> list[str]:
        """Return the axes that are searched, in the order of their computation."""
        whole = self.whole(graph)
        return statistics.order_axes(graph, [name for name in graph.axes if name not in whole])

    def described(self, graph: Graph) -> dict[str, Any]:
        """Return the description, plain JSON, that a hypernetwork for this network is stored with. UserError if the
        prompt does not fit on the images."""
        prompt, shape = None, self.pictures(graph)
        if shape and self.prompt != "none":
            size = fit_size(shape, self.prompt, self.prompt_size)
            prompt = [self.prompt, size, self.prompt_how, *shape]
        signature = [[name, graph.axes[name].size] for name in self.names(graph)]
        options = {name: getattr(self, name) for name in ("hidden", "recurrent", "init", "statistic")}
        return {"axes": signature, "prompt": prompt, **options}

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the dimensions of parameters that masks act on."""
        return ROLES[self.masking]

    def whole(self, graph: Graph) -> dict[str, str]:
        """Return the axes that stay whole because masks on their consumers would not be exact, and the reasons."""
        return gates.inexact_axes(graph, ROLES["consumer"])

    def frozen(self, graph: Graph) -> tuple[str, ...]:
        """Return the patterns of axes that keep all units: `freeze`, and the axes that stay whole."""
        return (*self.freeze, *map(glob.escape, self.whole(graph)))

    def rules(self, graph: Graph) -> dict[str, Any]:
        """Return the options of `select`; axes that stay whole count as frozen."""
        how = "uniform" if self.scope == "per_axis" else "global"
        return super().rules(graph) | {"freeze": self.frozen(graph), "how": how}


def check_sizes(data: Data, shape: tuple[int, int, int]) -> None:
    """Raise UserError unless all images of val have the shape of those of train.

    They are read for this, unless Prunus has brought all to one size itself. Of train the first is known; another that
    differs stops the search when it is read, with the same advice.
    """
    known = data.fingerprint
    if isinstance(data.val, Split) and known is not None and known.preprocessing is not None:
        return
    seen = [image_shape(x) for x, _ in data.val.batches(1)]
    wrong = [number for number, each in enumerate(seen) if each != shape]
    if wrong:
        raise UserError(
            f"pass puts a prompt on images of one size: those of train are {shape}, but {len(wrong)} of {len(seen)} of "
            f"val are not, the first being number {wrong[0] + 1} with {seen[wrong[0]]}. Bring all to one size "
            "(image_size, or where the data are made), or take prompt=none, or another method, such as taylor."
        )
