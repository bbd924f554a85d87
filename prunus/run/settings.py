"""The settings of a run, and the stage that reads each first."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from prunus.data import Crop, Data, ImageOptions, WorkerCount
from prunus.errors import UserError
from prunus.methods import Method, Options, configure, find
from prunus.options import Checked, Count, Epochs, Pixels, Range, Rate, Seed, Share
from prunus.run.recipes import PARTS, SAME_AS, Asked, ask, by_part
from prunus.selection import Budget, Sparsity
from prunus.tasks import DEFAULT, Task, own_task
from prunus.zoo import Interpolation

Repair = Literal["order", "once", "off"]


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """How a run proceeds. All settings are stored with the result.

    A run resumes only with the same settings, but those that no stage has read yet may change (`READ_BY`).

    Args:
        task: The task's name, or "package.module:callable", which returns one that has a model and data of its own.
        task_options: The options of a built-in task, each "name=value".
        method: The method's name, or "package.module:prune".
        options: The method's options, each "name=value".
        steps: The number of steps in which the budget is reached; between them the network is repaired and trained, for
            its part of `epochs` each.
        seed: The seed of weights, order and random choices.
        weights: A file of weights for the model, which are then fine-tuned.
        image_size: The side in pixels to which images are resized; None: as the model expects, or their own size if
            they are small and all of one size.
        mean: The mean of each channel of the images over 0..1; None: as the model expects.
        std: The standard deviation of each channel over 0..1; None: as the model expects.
        crop: The side of the central square that is cut out, as a share of the shorter side; None: as the model
            expects.
        interpolation: The way of resizing; None: as the model expects.
        transform: "package.module:callable", which maps a PIL image to a float tensor (C, H, W), in place of all that.
        skip_broken: Whether to leave out images and texts that cannot be read; otherwise they are an error.
        base_epochs: Epochs of training before pruning; None: as the task advises, but 0 for a model that is passed as
            a module, because it is taken as trained.
        base_lr: The highest learning rate before pruning; None: as the task advises.
        repair: The way of fitting the pruned model again without labels: "order" or "once", as in `prunus.repair`, or
            "off"; None: "order" where units are removed, but a model that cannot be repaired goes on as it was cut.
        epochs: Epochs of training after pruning; None: as the task advises. Fractions of epochs count, here and above.
        total_epochs: Epochs of training after the base, of the method's search and recovery together, in place of
            `epochs`; a search that trains takes half, unless its options say how many. A training from scratch gets
            those of the base in addition.
        minutes: In place of epochs, the time for recovery, as far as it can be foreseen: some steps are tried, and as
            many are planned as fit.
        lr: The highest learning rate after pruning; None: as the task advises.
        batch_size: The batch size of every training; None: as the task advises.
        precision: "bf16" or "no"; None: as the task advises.
        distill_weight: The weight of distillation from the base in the loss of recovery, 0 to 1; None: as the task
            advises.
        recipe: Fields of `train.Recipe` for trainings, each "PART.NAME=VALUE", such as "recover.optimizer=adamw"; PART
            is base, search (a method's own training) or recover, and without it all three.
        runtime: The runtime that measures a budget of milliseconds: "torch" on the training device (None: torch), or
            "onnxruntime" on the processor.
        threads: The number of threads that torch computes with; None: as many as it is set to.
        workers: The number of processes that read images, which changes no number; 0: this process reads; None: one for
            each core, but this process for data sets of the user's own code.

    Raises:
        UserError: A number is out of its range, or a word unknown.
    """

    task: str = DEFAULT
    task_options: tuple[str, ...] = ()
    method: str = "taylor"
    options: tuple[str, ...] = ()
    steps: Count = 1
    seed: Seed = 0
    weights: str | None = None
    image_size: Pixels | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: Crop | None = None
    interpolation: Interpolation | None = None
    transform: str | None = None
    skip_broken: bool = False
    base_epochs: Epochs | None = None
    base_lr: Rate | None = None
    repair: Repair | None = None
    epochs: Epochs | None = None
    total_epochs: Epochs | None = None
    minutes: Annotated[float, Range(0, above=True)] | None = None
    lr: Rate | None = None
    batch_size: Count | None = None
    precision: Literal["bf16", "no"] | None = None
    distill_weight: Share | None = None
    recipe: tuple[str, ...] = ()
    runtime: Literal["torch", "onnxruntime"] | None = None
    threads: Count | None = None
    workers: WorkerCount | None = None

    def __post_init__(self):
        super().__post_init__()
        _ = self.images  # is checked when it is made
        epochs = self.asked.of("recover").get("epochs")  # all that is asked of recipes is checked here, too
        asked = {name: getattr(self, name) for name in ("minutes", "total_epochs")}
        given = [f"{name}={value:g}" for name, value in asked.items() if value is not None]
        given += [] if epochs is None else [f"{epochs:g} epochs of recovery"]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} say two things about the same; give one.")

    @property
    def asked(self) -> Asked:
        """What is asked of the recipes, by `recipe` and by the settings that say the same."""
        return ask(self.recipe, {name: getattr(self, name) for name in SAME_AS})

    @property
    def images(self) -> ImageOptions:
        """How images are read, as far as the settings say."""
        return ImageOptions(**{field.name: getattr(self, field.name) for field in fields(ImageOptions)})


OF_RECIPE = {
    part: f"recipe.{part}" for part in PARTS
}  # settings.json has a list for each part in place of `recipe`
# The settings that each stage is the first to read: until it has begun, they may be corrected when a run is resumed.
READ_BY = {
    "base": (
        *("model", "data", "task", "task_options", "seed", "weights", "skip_broken"),
        *("image_size", "mean", "std", "crop", "interpolation", "transform"),
        *("base_epochs", "base_lr", "batch_size", "precision", OF_RECIPE["base"]),
    ),
    "prune": ("method", "options", "steps", "budget", "runtime", "total_epochs", OF_RECIPE["search"]),
    "shrink": (),
    "repair": ("repair",),
    "recover": ("epochs", "minutes", "lr", "distill_weight", OF_RECIPE["recover"]),
    "evaluate": (),
}
LATER = (
    *("skip_broken", "task", "task_options", "steps", "minutes", "recipe", "total_epochs"),
    *("mean", "std", "crop", "interpolation", "transform", "workers"),
)
OF_ENVIRONMENT = ("threads", "workers")  # of the machine that computes; the first may change with a warning


def to_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as settings.json stores them.

    Those that version 0.1.0 lacks are left out where they are the usual ones.
    """
    stored, usual = asdict(settings), asdict(Settings())
    stored = {name: value for name, value in stored.items() if name not in LATER or value != usual[name]}
    recipe = by_part(stored.pop("recipe", ()))
    return stored | {OF_RECIPE[part]: texts for part, texts in recipe.items() if texts}


def resolve_budget(settings: Settings, budget: Budget | Sparsity | None) -> Budget | Sparsity:
    """Return the budget, or the method's default; UserError if the method does not take such a limit, or if its options
    do not go together."""
    method, config = resolve_method(settings)
    budget = config.default_limit() if budget is None else budget
    method.check(budget)
    config.check_together(budget)
    return budget


def resolve_task(settings: Settings, task: Task | str | None) -> tuple[Settings, Task | None]:
    """Return the settings with the task's name, and the task if it is the user's own; None for a built-in one.

    task: As in `prune`. Raises UserError if it is named twice, or the user's own cannot be made.
    """
    if isinstance(task, str):
        if settings.task not in (DEFAULT, task):
            raise UserError(f"the task is {task!r}, but the settings say {settings.task!r}; name it once.")
        settings, task = replace(settings, task=task), None
    elif task is not None and settings.task != DEFAULT:
        raise UserError(f"give either a task or its name; the settings say {settings.task!r}.")
    if task is None and ":" in settings.task:
        task = own_task(settings.task, settings.seed)
    if settings.task_options and task is not None:
        raise UserError(
            f"{' '.join(settings.task_options)}: a task of your own takes no options; set them where it is made."
        )
    return settings, task


def resolve_method(settings: Settings) -> tuple[Method, Options]:
    """Return the method and its options; UserError if either is unknown."""
    method = find(settings.method)
    kind = f"option of method {settings.method}"
    return method, configure(method.config_class, settings.options, kind)


def resolve_repair(settings: Settings) -> Repair:
    """Return whether and how the pruned model is repaired; UserError if the method removes no units."""
    _, config = resolve_method(settings)
    if config.recovery_purpose == "scratch":
        return settings.repair or "off"
    if config.removes == "units":
        return settings.repair or "order"
    if settings.repair not in (None, "off"):
        raise UserError(
            f"repair={settings.repair} fits the layers behind removed units, but {settings.method} sets single weights "
            "to zero; leave it out."
        )
    return "off"


def read_by(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the settings that each stage of a run is the first to read: if it prunes in steps, it trains in prune."""
    if settings.get("steps", 1) == 1:
        return READ_BY
    early = ("repair", "recover")
    prune = (*READ_BY["prune"], *(name for stage in early for name in READ_BY[stage]))
    return {
        stage: prune if stage == "prune" else () if stage in early else READ_BY[stage] for stage in READ_BY
    }


def check_steps(settings: Settings, budget: Budget | Sparsity) -> None:
    """Raise UserError if the method or the budget do not go with several steps."""
    _, config = resolve_method(settings)
    why = config.no_steps
    if config.removes == "weights":
        why = "it sets single weights to zero"
    elif "latency_ms" in budget.limits:
        why = "milliseconds are measured on the original's own widths; give a budget of another cost"
    elif len(budget.limits) > 1:
        why = "each step comes nearer to one limit; give one of them"
    elif settings.minutes is not None:
        why = "the minutes would have to be shared among the steps; give a number of epochs"
    if settings.steps > 1 and why:
        raise UserError(
            f"steps={settings.steps} does not go with {settings.method} and {budget}: {why}. Leave steps out."
        )


def label(thing: object) -> str:
    """Return the name under which settings.json stores a model or data: its SPEC, or its class."""
    if isinstance(thing, str):
        return thing
    return thing.name if isinstance(thing, Data) else f"{type(thing).__qualname__} (given)"
