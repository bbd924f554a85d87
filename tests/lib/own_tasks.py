"""Tasks of a user's own, tiny: what `prunus.Task` takes, in every form."""

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import prunus
from tests.lib.models import imported_beside_torchvision

RECIPE = {"epochs": 2, "lr": 1e-2}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Table(Dataset):
    """Rows of a table: two groups of columns, a number to predict, and noise that is drawn when a row is read."""

    def __init__(self, rows: int, seed: int):
        self.numbers, self.more = drawn(seed, rows, 6), drawn(seed + 1, rows, 3)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        numbers, more = self.numbers[index], self.more[index]
        noise = 0.01 * torch.randn(6)
        return {"numbers": numbers + noise, "more": more, "target": (numbers.sum() + more[:1])}


class Regressor(nn.Module):
    """Two groups of columns to one number, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(3, 24)
        self.c, self.dropout, self.d = nn.Linear(48, 16), nn.Dropout(0.1), nn.Linear(16, 1)

    def forward(self, numbers: Tensor, more: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.a(numbers), self.b(more)], 1))
        return self.d(self.dropout(F.relu(self.c(x))))


def made(model: type[nn.Module], **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(**options)


def regression(**options: Any) -> prunus.Task:
    """Rows as dicts, judged by the mean absolute error in metres; lower is better."""
    loaders = {
        "train": DataLoader(Table(96, 0), batch_size=16, shuffle=True),
        "val": DataLoader(Table(32, 10), batch_size=16),
        "test": DataLoader(Table(32, 20), batch_size=16),
    }
    return prunus.Task(
        made(Regressor),
        **loaders,
        loss=F.mse_loss,
        metric=F.l1_loss,
        metric_name="error",
        unit="m",
        higher_is_better=False,
        recipe=RECIPE,
        **options,
    )


def read_row(file: Any) -> dict[str, Tensor]:
    numbers = torch.tensor(json.loads(file.read_text()), dtype=torch.float32)
    return {"numbers": numbers[None, :6], "more": numbers[None, 6:]}


def answering() -> prunus.Task:
    """The same, which answers files of a row."""
    return regression(read=read_row, answer=lambda output: {"metres": output.item()})


class Tagger(nn.Module):
    """Two arguments by position, and a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.a(one) + self.b(other))
        return self.head(hidden), hidden


def multilabel() -> prunus.Task:
    """Two inputs, four labels that may all be true, two losses with weights, no test set; batches are a list."""
    metrics = imported_beside_torchvision(
        "torchmetrics"
    ).classification  # takes seconds, which others need not
    one, other = drawn(0, 96, 8), drawn(1, 96, 8)
    labels = ((one + other)[:, :4] > 0).float()
    batches = [(one[at : at + 16], other[at : at + 16], labels[at : at + 16]) for at in range(0, 96, 16)]
    return prunus.Task(
        made(Tagger),
        train=batches[:4],
        val=batches[4:],
        loss={
            "labels": lambda output, target: F.binary_cross_entropy_with_logits(output[0], target),
            "sparsity": (lambda output, target: output[1].mean(), 0.1),
        },
        metric=metrics.MultilabelAccuracy(4),
        prediction=lambda output: output[0].sigmoid(),
        outputs="0",
        recipe=RECIPE,
    )


class Segmenter(nn.Module):
    """A class for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.body, self.head = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(F.relu(self.norm(self.stem(x))))))


IGNORED = 255


def segmentation() -> prunus.Task:
    """Pixels of three classes by their brightness, some of which count for nothing."""
    metrics = imported_beside_torchvision("torchmetrics").classification

    def loader(rows: int, seed: int, shuffle: bool = False) -> DataLoader:
        images = drawn(seed, rows, 1, 8, 8)
        classes = torch.bucketize(images[:, 0], torch.tensor([-0.5, 0.5]))
        classes[:, 0, 0] = IGNORED
        return DataLoader(TensorDataset(images, classes), batch_size=16, shuffle=shuffle)

    return prunus.Task(
        made(Segmenter),
        train=loader(64, 0, shuffle=True),
        val=loader(16, 1),
        test=loader(16, 2),
        loss=lambda output, target: F.cross_entropy(output, target, ignore_index=IGNORED),
        metric=metrics.MulticlassJaccardIndex(3, ignore_index=IGNORED),
        metric_name="mean_iou",
        distill=lambda output, teacher: F.mse_loss(output.softmax(1), teacher.softmax(1)),
        recipe=RECIPE,
    )


class Reader(nn.Module):
    """Tokens to one of two classes; called with labels, it returns its loss, as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(32, 12), nn.Linear(12, 24), nn.Linear(24, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        hidden = F.relu(self.body(self.embedding(input_ids))) * attention_mask[..., None]
        logits = self.head(hidden.sum(1))
        loss: Any = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def language_model() -> prunus.Task:
    """A model that is given the labels, and returns an output with the loss in it."""
    tokens = torch.randint(32, (64, 8), generator=torch.Generator().manual_seed(0))
    rows = [
        {"input_ids": row, "attention_mask": torch.ones(8, dtype=torch.long), "labels": (row[0] > 15).long()}
        for row in tokens
    ]
    return prunus.Task(
        made(Reader),
        train=DataLoader(rows[:48], batch_size=16, shuffle=True),
        val=DataLoader(rows[48:], batch_size=16),
        loss=None,
        metric=lambda output, target: (output.logits.argmax(1) == target).float().mean(),
        metric_name="accuracy",
        recipe=RECIPE,
    )


def random_weights() -> prunus.Task:
    """A layer whose weights are drawn when the task is made."""
    batches = [(drawn(0, 4, 3), drawn(1, 4, 2))]
    return prunus.Task(nn.Linear(3, 2), train=batches, val=batches, loss=F.mse_loss)
