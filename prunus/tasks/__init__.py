"""Tasks: a model, data, and the loss and metric on them.

Its files, in the order in which to read them:

    _contract         Task, the contract of every task; what a task is made from
    _registry         finding a task by its name
    classification    image classification: cross-entropy and top-1 accuracy
"""

from prunus.tasks._contract import Given, Options, Task
from prunus.tasks._registry import DEFAULT, Kind, find_kind, kinds, own_task
from prunus.tasks.classification import Classification, logits

__all__ = [
    "DEFAULT",
    "Classification",
    "Given",
    "Kind",
    "Options",
    "Task",
    "find_kind",
    "kinds",
    "logits",
    "own_task",
]
