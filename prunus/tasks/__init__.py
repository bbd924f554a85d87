"""Tasks: what a model is for, as a loss and a metric on data.

Its files, in the order in which to read them:

    task              the contract: Task
    classification    image classification: cross-entropy and top-1 accuracy
"""

from prunus.tasks.classification import Classification
from prunus.tasks.task import Task

__all__ = [
    "Classification",
    "Task",
]
