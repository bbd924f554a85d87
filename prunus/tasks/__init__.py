"""Tasks: a model, data, and the loss and metric on them.

Its files, in the order in which to read them:

    task              Task, the contract of every task
    classification    image classification: cross-entropy and top-1 accuracy
"""

from prunus.tasks.classification import Classification, logits
from prunus.tasks.task import Task

__all__ = [
    "Classification",
    "Task",
    "logits",
]
