"""What a user asks of the trainings of a run: `--recipe PART.NAME=VALUE`, and the options that say the same.

    base       training before pruning
    search     a method's own training, while it searches
    recover    training after pruning

A field without a part is meant for all trainings that take it; what is asked of one part goes before that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.errors import UserError, unknown
from prunus.methods import Method, Options, configure
from prunus.options import Epochs
from prunus.train import Recipe

PARTS = ("base", "search", "recover")
EVERYWHERE = ""
KIND = "field of a recipe"
OF_TEACHER = ("distill_weight", "distill_temperature")
# Settings that ask for a field of a recipe: of which part, and which field.
SAME_AS = {
    "batch_size": (EVERYWHERE, "batch_size"),
    "precision": (EVERYWHERE, "precision"),
    "base_epochs": ("base", "epochs"),
    "base_lr": ("base", "lr"),
    "epochs": ("recover", "epochs"),
    "lr": ("recover", "lr"),
    "distill_weight": ("recover", "distill_weight"),
}


@dataclass(frozen=True, kw_only=True)
class Fields(Recipe):
    """The fields that can be asked for."""

    epochs: Epochs = 0.0


@dataclass(frozen=True)
class Asked:
    """The fields of recipes that a user asks for.

    Args:
        fields: By part, or EVERYWHERE, the fields.
    """

    fields: Mapping[str, Mapping[str, Any]]

    @property
    def everywhere(self) -> Mapping[str, Any]:
        """The fields that are asked of all trainings."""
        return self.fields.get(EVERYWHERE, {})

    def of(self, part: str) -> dict[str, Any]:
        """Return the fields for a part."""
        return {**self.everywhere, **self.fields.get(part, {})}

    def of_search(self, method: Method, config: Options) -> dict[str, Any]:
        """Return the fields for a method's own training.

        Args:
            method: The method.
            config: Its options.

        Returns:
            The fields, without those that the method sets itself and that were asked of all trainings.

        Raises:
            UserError: Fields were asked of the search that it does not take.
        """
        own, fixed = self.fields.get("search", {}), config.fixed_in_search()
        if own and fixed is None:
            raise UserError(
                f"search.{next(iter(own))}: method {method.name} trains nothing while it chooses, with these options; "
                "leave it out."
            )
        if taken := [name for name in own if fixed and name in fixed]:
            raise UserError(
                f"search.{taken[0]}: method {method.name} sets {taken[0]} itself in its search, or has no use for it "
                f"with these options; leave it out. Its own options: `prunus methods {method.name}`."
            )
        return {name: value for name, value in self.of("search").items() if name not in (fixed or ())}


def ask(texts: Sequence[str], settings: Mapping[str, Any]) -> Asked:
    """Collect what is asked of the recipes.

    Args:
        texts: Texts such as "recover.optimizer=adamw" and "weight_decay=0.01".
        settings: The values of the settings in SAME_AS; None: not given.

    Returns:
        What is asked.

    Raises:
        UserError: A part or a field is unknown (the message names the nearest), a value does not fit, a field has no
            effect, or a field has two values.
    """
    given = [(*SAME_AS[name], settings[name], f"{name}={settings[name]}") for name in SAME_AS]
    fields: dict[str, dict[str, Any]] = {}
    said: dict[tuple[str, str], str] = {}
    for part, name, value, text in (*(each for each in given if each[2] is not None), *_read(texts)):
        if fields.setdefault(part, {}).setdefault(name, value) != value:
            raise UserError(f"{said[part, name]} and {text} say two things about the same; give one of them.")
        said.setdefault((part, name), text)
    asked = Asked(fields)
    for part in PARTS:
        if "momentum" in fields.get(part, {}) and asked.of(part).get("optimizer") == "adamw":
            raise UserError(f"{said[part, 'momentum']}: adamw has no momentum; leave it out.")
    return asked


def part_of(text: str) -> str:
    """Return the part that a text asks something of, or EVERYWHERE; UserError if there is no such part."""
    part, dot, _ = text.partition("=")[0].strip().rpartition(".")
    if dot and part not in PARTS:
        raise unknown("part of a run", part, PARTS)
    return part


def by_part(texts: Sequence[str]) -> dict[str, list[str]]:
    """Sort texts by the parts that read them, as settings.json stores them; those for all parts stand in each."""
    return {part: [text for text in texts if part_of(text) in (part, EVERYWHERE)] for part in PARTS}


def check_warmup(recipe: Recipe, part: str) -> Recipe:
    """Return a recipe, unless its training would end in its warm-up, which is refused."""
    if recipe.warmup_epochs and 0 < recipe.epochs <= recipe.warmup_epochs:
        raise UserError(
            f"{part}: a warm-up of {recipe.warmup_epochs:g} epochs is as long as the whole training of "
            f"{recipe.epochs:g}; give warmup_epochs below that."
        )
    return recipe


def _read(texts: Sequence[str]) -> Iterator[tuple[str, str, Any, str]]:
    """Part, field, value and the text itself."""
    for text in texts:
        part = part_of(text)
        pair = text.strip().removeprefix(f"{part}.")
        name = pair.partition("=")[0].strip().replace("-", "_")
        value = getattr(configure(Fields, [pair], KIND), name)
        if part == "base" and name in OF_TEACHER:
            raise UserError(f"{text}: nothing teaches the base, so it has no effect; leave it out.")
        yield part, name, value, text
