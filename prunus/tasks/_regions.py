"""How well two label maps agree: the intersection over union of each class, over all pixels that count.

Counts of pixels are added over a whole split before anything is divided, so the figures are not means over batches or
images. They equal torchmetrics' and scikit-learn's, as tests show. torchmetrics is not imported: it imports
torchvision, and fails with it where that does not fit torch.
"""

import torch
from torch import Tensor


def confusion(predicted: Tensor, truth: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Count pixels by class.

    Args:
        predicted: The predicted classes, int64 (...), each below `classes`.
        truth: The true classes, int64 of the same shape.
        classes: The number of classes.
        ignore_index: The number in `truth` of pixels that do not count.

    Returns:
        The counts, int64 (classes, classes), by true and predicted class.
    """
    counted = truth != ignore_index
    places = truth[counted] * classes + predicted[counted]
    return places.bincount(minlength=classes**2).view(classes, classes)


def class_ious(counts: Tensor, ignore_index: int) -> Tensor:
    """Compute the intersection over union of each class.

    Args:
        counts: The counts of `confusion`.
        ignore_index: The number of pixels that do not count; a class of that number has no figure.

    Returns:
        The share, float64 (classes,); NaN for a class that is neither in the truth nor predicted.
    """
    counts = counts.double()
    hits = counts.diagonal()
    ious = hits / (counts.sum(0) + counts.sum(1) - hits)
    if 0 <= ignore_index < len(ious):
        ious[ignore_index] = torch.nan
    return ious


def mean_iou(counts: Tensor, ignore_index: int) -> float:
    """Return the mean of `class_ious` over the classes that have one; NaN if none has."""
    return float(class_ious(counts, ignore_index).nanmean())


def pixel_accuracy(counts: Tensor) -> float:
    """Return the share of pixels whose class is predicted; NaN if none counts."""
    counts = counts.double()
    return float(counts.diagonal().sum() / counts.sum())
