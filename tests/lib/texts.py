"""Small texts of a few words, tiny networks that read them, and the arguments of runs on them."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunus.zoo.language import Decoder, Encoder

WORDS = {
    "city": "tram brick lamp noise crowd kiosk".split(),
    "field": "corn plough soil hare fence tractor".split(),
    "sea": "wave boat salt tide gull anchor".split(),
}
TINY = {"depth": 1, "width": 16, "heads": 4, "hidden": 256}


def encoder(vocabulary: int = 258, length: int = 32, classes: int = 3) -> Encoder:
    return Encoder(vocabulary, length, classes, **TINY)


def decoder(vocabulary: int = 258, length: int = 32) -> Decoder:
    return Decoder(vocabulary, length, **TINY)


class Constant(nn.Module):
    """Scores that do not depend on the text, of any shape."""

    def __init__(self, *shape: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(shape))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.scores


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 2 to 6 words with the class that the words are of, all different."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        name = list(WORDS)[number % len(WORDS)]
        found.append((" ".join(rng.choice(WORDS[name], rng.integers(2, 7))) + f" {seed}{number}", name))
    return found


def write_csv(file: Path, rows: list[tuple], head: tuple[str, ...] = ("text", "label")) -> Path:
    """Write a table; returns its file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([head, *rows])
    return file


def write_jsonl(file: Path, rows: list[dict]) -> Path:
    """Write a table of JSON lines; returns its file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_book(file: Path, count: int = 60) -> Path:
    """Write paragraphs of a few sentences; returns the file."""
    texts = [text for text, _ in sentences(4 * count)]
    file.write_text("\n\n".join(".\n".join(texts[at : at + 4]) for at in range(0, len(texts), 4)))
    return file


def write_tokenizer(folder: Path, **config: int) -> Path:
    """Write tokenizer.json of the words above, a beginning and an end, and config.json; returns the folder."""
    import tokenizers  # an optional library

    names = ["[PAD]", "[UNK]", "[END]", "[START]", *(word for words in WORDS.values() for word in words)]
    model = tokenizers.models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens(names[:4])
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", 3), ("[END]", 2)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config or {"pad_token_id": 0, "eos_token_id": 2}))
    return folder


def arguments(folder: Path, task: str) -> list[str]:
    """The arguments of `prunus run` for a few seconds of a task on texts below `folder`."""
    if task == "text":
        data = f"csv:{write_csv(folder / 'texts.csv', sentences(60))}"
    else:
        data = f"text:{write_book(folder / 'book.txt', 24)}"
    model = {"text": "tests.lib.texts:encoder", "lm": "tests.lib.texts:decoder"}[task]
    common = ["--data", data, "--model", model, "--length", "32", "--base-epochs", "2", "--epochs", "2"]
    return ["run", "--task", task, *common, "--batch-size", "8", "--precision", "no"]
