"""Tasks: what a model is for, as a loss and a metric on data.

Its files, in the order in which to read them:

    classification    cross-entropy and top-1 accuracy
"""

from prunus.tasks.classification import EVALUATION_BATCH, Classification, logits

__all__ = [
    "EVALUATION_BATCH",
    "Classification",
    "logits",
]
