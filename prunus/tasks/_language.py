"""What classifying texts and predicting tokens share: scores of tokens, and what fits a model that reads them.

A target of -100 counts nowhere: not in the loss, not in the metric, not in distillation.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data import Bytes, Data, Padded, Tokenizer, find_tokenizer
from prunus.errors import UserError
from prunus.files import expand_home
from prunus.inputs import call, model_device, move
from prunus.options import Count
from prunus.tasks import _contract
from prunus.tasks._contract import File, Given, Task, bytes_of, named
from prunus.tasks._losses import IGNORED
from prunus.tasks.classification import logits
from prunus.train import Recipe, in_mode
from prunus.zoo import has_weights

EVALUATION_BATCH = 32  # texts or blocks
JUDGED = 64  # texts or blocks from which examples are chosen
MOST_UNUSED = 2  # a model has at most so many times the tokens of its tokenizer; more belong to another one
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
)  # in the configs of transformers


@dataclass(frozen=True, kw_only=True)
class Options(_contract.Options):
    """The options that both tasks have.

    Args:
        length: The number of tokens that the model reads at once.
        text_column: The column of the texts, in csv, jsonl and parquet files.
        tokenizer: A folder with tokenizer.json; None: the model's folder, or bytes where there is none.
    """

    length: Count = 256
    text_column: str = "text"
    tokenizer: str | None = None


def tokenizer_given(given: Given, options: Options) -> Tokenizer:
    """Find the tokenizer: as the options say, otherwise that of the model's folder, otherwise bytes.

    Raises UserError if options say how images are read, which texts are not.
    """
    given.refuse_images(
        "texts are no images (the number of tokens that are read at once is the option length)"
    )
    folder = folder_of(given.model) if options.tokenizer is None else options.tokenizer
    return find_tokenizer(folder)


def folder_of(model: nn.Module | str) -> str | None:
    """Return the folder of a model from hf:DIR; None for others."""
    return model.removeprefix("hf:") if isinstance(model, str) and model.startswith("hf:") else None


def comes_with_weights(model: nn.Module | str) -> bool:
    """Return whether a SPEC names a folder with weights."""
    folder = folder_of(model)
    return folder is not None and has_weights(expand_home(folder))


def cross_entropies(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy over the targets that count.

    Args:
        scores: The scores of classes or tokens, (..., classes).
        target: The right ones, int64 (...).

    Returns:
        The sum in nats, and the number of targets that count.
    """
    flat = target.flatten()
    total = F.cross_entropy(scores.flatten(0, -2).float(), flat, ignore_index=IGNORED, reduction="sum")
    return total, (flat != IGNORED).sum()


def divergence(output: Tensor, teacher: Tensor, target: Tensor | None, temperature: float) -> Tensor:
    """Return the mean KL divergence of softened scores from the teacher's where targets count, times temperature².

    Hinton et al., arXiv:1503.02531, section 2; the factor keeps the gradients' size as the temperature varies.

    Args:
        output: The scores (..., classes).
        teacher: The teacher's.
        target: The targets (...), which say where they count; None: everywhere.
        temperature: What scores are divided by.

    Returns:
        A scalar.
    """
    ours, theirs = (F.log_softmax(each.float() / temperature, -1) for each in (output, teacher))
    apart = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    counted = torch.ones_like(apart) if target is None else (target != IGNORED).to(apart.dtype)
    return (apart * counted).sum() / counted.sum().clamp(min=1) * temperature**2


class Language(Task):
    """Texts in tokens, answered by scores: of classes, or of the next token.

    Args:
        model: The model, called with the keywords input_ids and, for texts, attention_mask; methods leave it unchanged.
        data: The texts.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
        tokenizer: What turned the texts into tokens; None: bytes.
        length: The most tokens that the model reads at once; None: as many as the example has.
    """

    recipes: ClassVar[Mapping[str, Recipe]]  # by purpose
    free_dims = (0, 1)

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe_fields: dict[str, Any] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        length: int | None = None,
    ):
        super().__init__(model, data, recipe_fields)
        self.tokenizer = tokenizer or Bytes()
        self.length = length or self.example["input_ids"].shape[1]

    @abstractmethod
    def check_output(self, shape: tuple[int, ...], tokens: int) -> None:
        """Raise UserError if the model answers two texts of `tokens` tokens with scores of the wrong shape."""

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats over the targets that count; 0 if none does."""
        total, count = cross_entropies(logits(output), target)
        return total / count.clamp(min=1)

    def distil(self, output: Any, teacher_output: Any, temperature: float, target: Any = None) -> Tensor:
        """Return the KL divergence of the softened scores from the teacher's, where targets count."""
        return divergence(logits(output), logits(teacher_output), target, temperature)

    def recipe(self, purpose: str) -> Recipe:
        """Return a recipe to begin with: AdamW with clipped gradients; recovery learns the base's scores by half."""
        return self.recipes[purpose].adapt(**self.recipe_fields)

    def check(self, model: nn.Module) -> None:
        """Raise UserError if the tokenizer or the length does not fit the model, its scores the data, or no target
        counts."""
        self._check_targets()
        positions = positions_of(model)
        if positions is not None and self.length > positions:
            raise self._too_long(positions)
        device = model_device(model)
        inputs = move({name: torch.cat([value, value]) for name, value in self.example.items()}, device)
        shape = self._run(model, inputs)
        tokens = inputs["input_ids"].shape[1]
        if len(shape) < 2 or shape[0] != 2:
            raise UserError(
                f"the model answers 2 texts of {tokens} tokens with the shape {shape}; expected scores (2, ..., number "
                "of classes or tokens), alone or as the output's `logits`."
            )
        self.check_output(shape, tokens)

    def read_file(self, file: File) -> dict[str, Tensor]:
        """Read a text in UTF-8 as the run read its own: {"input_ids": int64 (1, T), ...}, cut to `length` tokens."""
        try:
            text = bytes_of(file).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{named(file)} is no text in UTF-8 ({error}).") from error
        tokens = self.encode(text)
        if not len(tokens):
            raise UserError(f"{named(file)} holds no text.")
        found = Padded([tokens], self.tokenizer.pad).read(np.arange(1), None)
        return {name: found[name] for name in self.example}

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Turn one text into the tokens that the model reads of it, int64 (T,)."""

    def _check_targets(self) -> None:
        for name, split in self.data.splits.items():
            if not any(bool((target != IGNORED).any()) for _, target in split.batches(EVALUATION_BATCH)):
                raise UserError(
                    f"all targets of {name!r} in {self.data.name} are {IGNORED}, which counts nowhere, so nothing can "
                    "be learned or judged; give targets that are classes or tokens."
                )

    def _run(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[int, ...]:
        """The shape of the model's scores for two texts; UserError if it cannot read them."""
        hooks = [
            part.register_forward_pre_hook(lambda part, args: self._check_lookup(part, args[0], inputs["input_ids"]))
            for part in model.modules()
            if isinstance(part, nn.Embedding)
        ]  # fmt: skip
        try:
            with in_mode(model, False), torch.no_grad():
                return tuple(logits(call(model, inputs)).shape)
        except (RuntimeError, IndexError, TypeError, AttributeError) as error:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
            raise UserError(
                f"the model cannot read {self.data.name}: called with {shapes} it raises {type(error).__name__}: "
                f"{error}. It is called with these keywords, and should return scores, alone or as the output's "
                "`logits`."
            ) from error
        finally:
            for hook in hooks:
                hook.remove()

    def _check_lookup(self, part: nn.Module, places: Any, input_ids: Tensor) -> None:
        """Raise UserError if an embedding of tokens does not fit the tokenizer, or one of places the length."""
        assert isinstance(part, nn.Embedding)
        size, ours = part.num_embeddings, self.tokenizer
        if not isinstance(places, Tensor):
            return
        if places.shape == input_ids.shape and torch.equal(places, input_ids):
            if not ours.size <= size <= MOST_UNUSED * ours.size:
                raise UserError(
                    f"the tokenizer ({ours.name}) has {ours.size} tokens, but the model was made for {size}: it "
                    "would be given tokens that mean something else to it. Put the model's own tokenizer.json into its "
                    "folder, or name the folder that has it with --tokenizer (tokenizer=...)."
                )
        elif int(places.max()) >= size:
            raise self._too_long(size)

    def _too_long(self, positions: int) -> UserError:
        return UserError(
            f"the model has {positions} positions, but the data have texts of {self.length} tokens; give "
            f"--length {positions} (length={positions}) or less."
        )

    def asked_of_model(self) -> dict[str, Any]:
        """Return the number of tokens that there are, and how many the model reads at once."""
        return {"vocabulary": self.tokenizer.size, "length": self.length}


def positions_of(model: nn.Module) -> int | None:
    """Return how many positions the config of a model of transformers states; None for others."""
    config = getattr(model, "config", None)
    found = (getattr(config, name, None) for name in POSITIONS)
    return next((number for number in found if isinstance(number, int) and number > 0), None)
