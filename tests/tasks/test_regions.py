"""Mean IoU and pixel accuracy equal other implementations, over a whole split."""

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from prunus.tasks._regions import class_ious, confusion, mean_iou, pixel_accuracy
from tests.lib.models import imported_beside_torchvision

IGNORED = 255


def drawn(
    seed: int, classes: int = 4, shape: tuple[int, ...] = (3, 9, 7)
) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    predicted, truth = (torch.randint(classes, shape, generator=make) for _ in range(2))
    truth[torch.rand(shape, generator=make) < 0.2] = IGNORED
    return predicted, truth


def test_pixels_are_counted_one_by_one():
    predicted, truth = drawn(0)
    counts = confusion(predicted, truth, 4, IGNORED)
    wanted = np.zeros((4, 4), int)
    for mine, theirs in zip(predicted.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if theirs != IGNORED:
            wanted[theirs, mine] += 1
    assert counts.tolist() == wanted.tolist()


def test_figures_are_those_of_scikit_learn():
    predicted, truth = drawn(1)
    counts, counted = confusion(predicted, truth, 4, IGNORED), truth != IGNORED
    scores = jaccard_score(truth[counted], predicted[counted], average=None)
    assert class_ious(counts, IGNORED).tolist() == pytest.approx(list(scores))
    assert mean_iou(counts, IGNORED) == pytest.approx(np.mean(scores))
    assert pixel_accuracy(counts) == pytest.approx(float((truth == predicted)[counted].float().mean()))


@pytest.mark.parametrize("ignored", [IGNORED, 1])
def test_mean_iou_is_that_of_torchmetrics_over_all_batches(ignored):
    metrics = imported_beside_torchvision("torchmetrics").classification
    theirs = metrics.MulticlassJaccardIndex(5, ignore_index=ignored)
    counts = torch.zeros(5, 5, dtype=torch.long)
    for seed in range(4):
        predicted, truth = drawn(seed)  # the fifth class is neither there nor predicted
        truth = torch.where(truth == IGNORED, ignored, truth)
        theirs.update(predicted, truth)
        counts += confusion(predicted, truth, 5, ignored)
    assert mean_iou(counts, ignored) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_a_split_is_not_a_mean_of_batches():
    one, other = (confusion(*drawn(seed, shape=(1, 2 + 9 * seed, 5)), 4, IGNORED) for seed in (0, 1))
    whole = mean_iou(one + other, IGNORED)
    assert abs(whole - (mean_iou(one, IGNORED) + mean_iou(other, IGNORED)) / 2) > 0.01


def test_nothing_that_counts_has_no_figure():
    counts = confusion(torch.zeros(4, dtype=torch.long), torch.full((4,), IGNORED), 3, IGNORED)
    assert np.isnan(mean_iou(counts, IGNORED)) and np.isnan(pixel_accuracy(counts))
