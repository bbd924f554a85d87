"""The options that `run` and `compare` share, and the settings that they make."""

from dataclasses import dataclass
from typing import Any

from prunus.cli.parameters import (
    Channels,
    File,
    Multiple,
    Pairs,
    Part,
    Patterns,
    Precision,
    Readers,
    Real,
    RecipePairs,
    Repairs,
    Resizing,
    Runtime,
    Size,
    TaskPairs,
    Threads,
    Total,
    Transform,
    Whole,
)
from prunus.run import Settings
from prunus.tasks import DEFAULT


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a model is made, how images are read, and how networks are trained.

    Args:
        task: The purpose of the model; `prunus tasks` lists them. package.module:callable returns a prunus.Task, which
            has a model and data of its own.
        weights: A .safetensors file, or a .pt file of tensors, to fine-tune from.
        total_epochs: The number of epochs after the base, of the method's search and the training after pruning
            together; a search that trains takes half, unless its options say how many.
        base_epochs: The number of epochs of training before pruning; 0 uses the weights as they are.
        base_lr: The highest learning rate before pruning.
        repair: The way of fitting the pruned model again without labels, before it is trained; the better one goes on.
        steps: The number of steps in which the budget is reached; the network is repaired and trained between them.
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
        freeze: What keeps all units: kinds of axes, or patterns of layers, such as 'head*' 'layer4.*'.
        only: What may shrink: kinds of axes, such as heads mlp, or patterns of layers. `prunus inspect` lists kinds.
        round_to: The number of which all widths become multiples.
        uniform: Give all blocks the same widths, such that the config of a model of transformers says them.
        options: An option of the method, in a comparison of all methods that have it; may be given several times.
            `prunus methods NAME` lists them.
        task_options: An option of the task, also given as --NAME VALUE. `prunus tasks NAME` lists them.
    """

    task: str = DEFAULT
    weights: File = None
    total_epochs: Total = None
    base_epochs: Real = None
    base_lr: Real = None
    repair: Repairs = None
    steps: int = 1
    lr: Real = None
    batch_size: Whole = None
    precision: Precision = None
    distill_weight: Real = None
    recipe: RecipePairs = ()
    runtime: Runtime = None
    image_size: Size = None
    mean: Channels = None
    std: Channels = None
    crop: Part = None
    interpolation: Resizing = None
    transform: Transform = None
    workers: Readers = None
    skip_broken: bool = False
    threads: Threads = None
    freeze: Patterns = ()
    only: Patterns = ()
    round_to: Multiple = None
    uniform: bool = False
    options: Pairs = ()
    task_options: TaskPairs = ()

    def settings(self, **more: Any) -> Settings:
        """Return the settings of a run: these, and `more`."""
        options = self.options
        for name in ("freeze", "only"):
            patterns = getattr(self, name)
            options += (f"{name}={','.join(patterns)}",) if patterns else ()
        options += (f"round_to={self.round_to}",) if self.round_to is not None else ()
        options += ("uniform=true",) if self.uniform else ()
        own: dict[str, Any] = {name: value for name, value in vars(self).items() if name not in NOT_SETTINGS}
        own |= {"options": options, "weights": self.weights and str(self.weights.resolve())}
        return Settings(**own | more)


NOT_SETTINGS = ("freeze", "only", "round_to", "uniform")
