"""Causal language modelling: which token comes next, judged by perplexity.

    prunus run --task lm --model zoo:decoder_tiny --data text:book.txt --length 256 --out runs/book

Texts are joined to a stream and cut into blocks, which have no padding. The loss is the cross-entropy; perplexity is e
to its mean over all tokens of a split, so lower is better, and it can be compared only for the same tokenizer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prunus.charts import Passages
from prunus.data import Examples, load_blocks
from prunus.errors import UserError
from prunus.inputs import call, model_device, move
from prunus.metrics import Metric
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

SHOWN = 64  # tokens at the end of a block whose guesses are shown, half of a block at most
CONTEXT = 192  # tokens before them that are shown


@dataclass(frozen=True, kw_only=True)
class Options(_language.Options):
    """The options of causal language modelling.

    Args:
        length: The number of tokens of a block.
        text_column: The column of the texts, in csv, jsonl and parquet files.
        tokenizer: A folder with tokenizer.json; None: the model's folder, or bytes where there is none.
    """


def make(given: Given, options: Options) -> "LanguageModelling":
    """Make the task of predicting the next token."""
    tokenizer, data = tokenizer_given(given, options), given.data
    if isinstance(data, str):
        data = load_blocks(
            data,
            tokenizer,
            length=options.length,
            text_column=options.text_column,
            seed=given.seed,
            skip_broken=given.skip_broken,
        )
    model = given.build_model(vocabulary=tokenizer.size, length=options.length)
    task = LanguageModelling(model, data, tokenizer=tokenizer, length=options.length)
    task.is_pretrained = comes_with_weights(given.model)
    return task


class LanguageModelling(Language):
    """Blocks of tokens (B, T), of which a model scores each next one: (B, T, vocabulary).

    Args:
        model: The model, called with the keyword input_ids; methods leave it unchanged.
        data: The blocks, with the tokens that follow as targets.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
        tokenizer: What turned the texts into tokens; None: bytes.
        length: The number of tokens of a block; None: that of the example.
    """

    metric = Metric(key="perplexity", higher_is_better=False)
    recipes: ClassVar = {
        "scratch": Recipe(
            epochs=10, batch_size=16, optimizer="adamw", lr=1e-3, weight_decay=0.1, warmup_epochs=0.3, clip_norm=1.0
        ),
        "tune": Recipe(
            epochs=1, batch_size=16, optimizer="adamw", lr=5e-5, weight_decay=0.1, warmup_epochs=0.1, clip_norm=1.0
        ),
        "recover": Recipe(
            epochs=2, batch_size=16, optimizer="adamw", lr=5e-4, weight_decay=0.1, warmup_epochs=0.1, clip_norm=1.0,
            distill_weight=0.5, distill_temperature=1.0,
        ),
    }  # fmt: skip

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Examples) -> dict[str, float]:
        """Return {"perplexity": from 1, "loss": nats}, over the tokens of `split` that count."""
        device, sums = model_device(model), torch.zeros(2, dtype=torch.float64)
        with in_mode(model, False):
            for x, y in split.batches(EVALUATION_BATCH):
                x, y = move((x, y), device)
                sums += torch.stack(cross_entropies(logits(call(model, x)), y)).double().cpu()
        total, count = sums.tolist()
        loss = total / max(count, 1)
        return {self.metric.key: perplexity(loss), "loss": loss}

    def encode(self, text: str) -> np.ndarray:
        """Turn a text into tokens, of which the last are read."""
        return self.tokenizer.split([text])[0][-self.length :]

    def answer(self, output: Any, most: int) -> Answer:
        """Return the likeliest tokens to follow with their probabilities."""
        shares = logits(output)[0, -1].float().softmax(0)
        return ranking(shares, tuple(self.tokenizer.join([token]) for token in range(len(shares))), most)

    def check_output(self, shape: tuple[int, ...], tokens: int) -> None:
        """Raise UserError unless there are scores for each token, of at least the tokenizer's tokens."""
        least = self.tokenizer.size
        if len(shape) != 3 or shape[1] != tokens or shape[2] < least:
            raise UserError(
                f"the model answers 2 blocks of {tokens} tokens with scores of shape {shape}; expected (2, {tokens}, "
                f"at least {least}), because the tokenizer ({self.tokenizer.name}) has {least} tokens. Build the model "
                "for them."
            )

    @torch.no_grad()
    def examples(self, original: nn.Module, small: nn.Module) -> Sequence[Passages]:
        """Return blocks of the test set: their ends as both models guess them token by token, and the truth.

        Of the first 64 blocks they are those whose loss rises most, least, and the median by pruning.
        """
        split, device, found = self.data.judged, model_device(small), []
        last = min(SHOWN, max(1, self.length // 2))
        with in_mode(original, False), in_mode(small, False):
            for number in range(min(JUDGED, len(split))):
                x, y = move(split.read(np.array([number])), device)
                scores = [logits(call(model, x)).float() for model in (original, small)]
                losses = [float(self.loss(each, y)) for each in scores]
                guesses = [each[0, -last:].argmax(-1).tolist() for each in scores]
                found.append((number, x["input_ids"][0].tolist(), y[0], losses, guesses))
        names = "guesses of the original", "guesses of the smaller model"
        charts = []
        for how, (number, tokens, target, losses, guesses) in choose_examples(
            found, lambda each: each[3][0] - each[3][1]
        ):
            before = tokens[max(0, len(tokens) - last - CONTEXT) : len(tokens) - last + 1]
            answers = [
                (f"{name}: {self.metric.key} {self.metric.text(perplexity(loss))}", self.tokenizer.join(guess))
                for name, loss, guess in zip(names, losses, guesses, strict=True)
            ]  # fmt: skip
            charts.append(
                Passages(
                    title=f"Test block {number + 1}: {how}",
                    note="Each guess is the likeliest token after all true ones before it; the perplexity is that of "
                    "the whole block.",
                    passages=[
                        ("text before", self.tokenizer.join(before)),
                        *answers,
                        ("truth", self.tokenizer.join(counted(target[-last:]))),
                    ],
                )
            )
        return charts


def perplexity(loss: float) -> float:
    """Return e to a loss in nats, infinite where that is too large a number."""
    return math.exp(loss) if loss < 700 else math.inf


def counted(target: Tensor) -> list[int]:
    """List the targets that count."""
    return target[target != IGNORED].tolist()
