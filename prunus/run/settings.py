"""What can be asked of a run."""

from dataclasses import dataclass

from prunus.data import Data
from prunus.methods import Method, Options, configure, find
from prunus.selection import Budget, Sparsity


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run goes. All of it is kept with the result, and only the same settings resume a run.

    options: the method's, each "name=value". weights: a file for the model. base_...: of the training before
    pruning, the others of the one after; None: as the task advises. A model that was given, not named, is
    taken as trained unless base_epochs says otherwise. runtime: in what a budget of milliseconds is measured, torch
    (None) on the device that trains, or onnxruntime on the processor.
    """

    method: str = "taylor"
    options: tuple[str, ...] = ()
    seed: int = 0
    weights: str | None = None
    image_size: int | None = None
    base_epochs: int | None = None
    base_lr: float | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    precision: str | None = None
    distill_weight: float | None = None
    runtime: str | None = None


def asked_for(settings: Settings, budget: Budget | Sparsity | None) -> Budget | Sparsity:
    """The budget, or what is usual for the method; UserError if the two do not go together."""
    method, config = configured(settings)
    budget = config.default_limit() if budget is None else budget
    method.check(budget)
    return budget


def configured(settings: Settings) -> tuple[Method, Options]:
    """The method and its options; UserError if there are none such."""
    method = find(settings.method)
    kind = f"option of method {settings.method}"
    return method, configure(method.config_class, settings.options, kind)


def given(values: dict) -> dict:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def label(thing: object) -> str:
    """How settings.json calls a model or data: the SPEC, or what class of thing was given."""
    if isinstance(thing, str):
        return thing
    return thing.name if isinstance(thing, Data) else f"{type(thing).__qualname__} (given)"
