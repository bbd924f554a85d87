"""Classifying texts: which class a text belongs to, judged by accuracy.

    prunus run --task text --model zoo:encoder_tiny --data csv:mails.csv --label-column kind --out runs/mails

Texts come from a folder for each class, or a column of a table. Texts of a batch are padded to the longest, and models
are told which tokens are padding. The loss is the cross-entropy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prunus.charts import Passages
from prunus.data import Examples, load_texts
from prunus.errors import UserError
from prunus.inputs import call, model_device, move
from prunus.metrics import ACCURACY
from prunus.tasks import _language
from prunus.tasks._answers import Answer, ranking
from prunus.tasks._contract import Given
from prunus.tasks._language import (
    EVALUATION_BATCH,
    JUDGED,
    Language,
    comes_with_weights,
    cross_entropies,
    tokenizer_given,
)
from prunus.tasks._losses import IGNORED
from prunus.tasks._panels import choose_examples
from prunus.tasks.classification import logits
from prunus.train import Recipe, in_mode

SHOWN = 600  # characters of a text in the report


@dataclass(frozen=True, kw_only=True)
class Options(_language.Options):
    """The options of classifying texts.

    Args:
        length: The number of tokens to which longer texts are cut.
        text_column: The column of the texts, in csv, jsonl and parquet files.
        label_column: The column of their classes: names, or numbers from 0.
        tokenizer: A folder with tokenizer.json; None: the model's folder, or bytes where there is none.
    """

    label_column: str = "label"


def make(given: Given, options: Options) -> "TextClassification":
    """Make the task of classifying texts."""
    tokenizer, data = tokenizer_given(given, options), given.data
    if isinstance(data, str):
        data = load_texts(
            data,
            tokenizer,
            length=options.length,
            text_column=options.text_column,
            label_column=options.label_column,
            seed=given.seed,
            skip_broken=given.skip_broken,
        )
    model = given.build_model(classes=data.classes, vocabulary=tokenizer.size, length=options.length)
    task = TextClassification(model, data, tokenizer=tokenizer, length=options.length)
    task.is_pretrained = comes_with_weights(given.model)
    return task


class TextClassification(Language):
    """Texts (B, T) in tokens, classified by a model that returns scores (B, data.classes).

    Args:
        model: The model, called with the keywords input_ids and attention_mask; methods leave it unchanged.
        data: The texts and their classes.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
        tokenizer: What turned the texts into tokens; None: bytes.
        length: The most tokens of a text; None: as many as the example has.
    """

    metric = ACCURACY
    judges_examples = True
    recipes: ClassVar = {
        "scratch": Recipe(
            epochs=20, batch_size=32, optimizer="adamw", lr=1e-3, weight_decay=0.01, warmup_epochs=1, clip_norm=1.0
        ),
        "tune": Recipe(
            epochs=3, batch_size=32, optimizer="adamw", lr=5e-5, weight_decay=0.01, warmup_epochs=0.3, clip_norm=1.0
        ),
        "recover": Recipe(
            epochs=5, batch_size=32, optimizer="adamw", lr=2e-4, weight_decay=0.01, warmup_epochs=0.3, clip_norm=1.0,
            distill_weight=0.5, distill_temperature=2.0,
        ),
    }  # fmt: skip

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Return {"accuracy": 0..1, "loss": nats}, the means over the texts of `split` whose class counts."""
        device, sums = model_device(model), torch.zeros(3, dtype=torch.float64)
        with in_mode(model, False):
            for x, y in split.batches(EVALUATION_BATCH):
                x, y = move((x, y), device)
                output = call(model, x)
                total, count = cross_entropies(logits(output), y)
                right = self.verdicts(output, y).sum()
                sums += torch.stack([right.double(), total.double(), count.double()]).cpu()
        right, total, count = sums.tolist()
        return {self.metric.key: right / max(count, 1), "loss": total / max(count, 1)}

    def verdicts(self, output: Any, target: Tensor) -> Tensor:
        """Return whether the top-1 prediction is correct, per text: bool (B,)."""
        return logits(output).argmax(1) == target

    def encode(self, text: str) -> np.ndarray:
        """Turn a text into tokens as those of the data were, from its beginning."""
        (tokens,), _ = self.tokenizer.frame([text], self.length)
        return tokens

    def answer(self, output: Any, most: int) -> Answer:
        """Return the likeliest classes with their probabilities."""
        names = self.data.fingerprint and self.data.fingerprint.class_names
        shares = logits(output)[0].float().softmax(0)
        return ranking(shares, names or tuple(map(str, range(len(shares)))), most)

    def check_output(self, shape: tuple[int, ...], tokens: int) -> None:
        """Raise UserError unless the scores are of the data's classes."""
        if shape != (2, self.data.classes):
            raise UserError(
                f"the model answers 2 texts with scores of shape {shape}, but {self.data.name} has {self.data.classes} "
                f"classes: expected (2, {self.data.classes}). Build the model for {self.data.classes} classes."
            )

    def asked_of_model(self) -> dict[str, Any]:
        """Return the number of classes, of tokens, and of the tokens of a text."""
        return super().asked_of_model() | {"classes": self.data.classes}

    @torch.no_grad()
    def examples(self, original: nn.Module, small: nn.Module) -> Sequence[Passages]:
        """Return texts of the test set with both models' answers and the truth.

        Of the first 64 texts they are those whose class loses most, least, and the median of its probability.
        """
        split, device, found = self.data.judged, model_device(small), []
        with in_mode(original, False), in_mode(small, False):
            for number in range(min(JUDGED, len(split))):
                x, y = split.read(np.array([number]))
                truth = int(y)
                if truth == IGNORED:
                    continue
                inputs = move(x, device)
                answers = [
                    logits(call(model, inputs)).float().softmax(1)[0].cpu() for model in (original, small)
                ]
                found.append((number, x["input_ids"][0].tolist(), truth, answers))

        def change(each: Any) -> float:
            _, _, truth, (before, after) = each
            return float(after[truth] - before[truth])

        names = "answer of the original", "answer of the smaller model"
        return [
            Passages(
                title=f"Test text {number + 1}: {how}",
                note="The text as the model reads it; beside each class its probability.",
                passages=[
                    ("text", shortened(self.tokenizer.join(tokens))),
                    *((name, self._answer(shares)) for name, shares in zip(names, answers, strict=True)),
                    ("truth", self._class_name(truth)),
                ],
            )
            for how, (number, tokens, truth, answers) in choose_examples(found, change)
        ]

    def _answer(self, shares: Tensor) -> str:
        """The likeliest class and its probability, in words."""
        best = int(shares.argmax())
        return f"{self._class_name(best)} ({100 * float(shares[best]):.0f} %)"

    def _class_name(self, number: int) -> str:
        named = self.data.fingerprint and self.data.fingerprint.class_names
        return named[number] if named else str(number)


def shortened(text: str) -> str:
    """Return the beginning of a text that is too long for the report."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
