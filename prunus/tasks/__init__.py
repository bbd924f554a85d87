"""Tasks: a model, data, and the loss and metric on them.

Its files, in the order in which to read them:

    _contract         Task, the contract of every task; what a task is made from
    _answers          what a model says about a file
    _registry         finding a task by its name
    _tiles            inference on large images by parts
    _quality          PSNR and SSIM
    _panels           images side by side
    _regions          how well two label maps agree
    _restoration      what the tasks of restoration share
    _rows             what the tasks on rows of tables share
    _losses           the losses of a user's own task
    _measures         the metric of a user's own task
    _own              prunus.Task, a task of a user's own
    _transformers     how transformers are trained
    _language         what the tasks of language share
    classification    image classification: cross-entropy and top-1 accuracy
    denoise           images freed of noise
    sr                images made larger
    text              texts classified
    lm                the next token predicted
    segment           a class for every pixel
    regression        numbers of images, or of rows of tables
    multilabel        several labels of images, or of rows of tables
"""

from prunus.tasks._answers import Answer, Prediction, picture, plain, ranking
from prunus.tasks._contract import Given, Options, Task
from prunus.tasks._registry import DEFAULT, Kind, find_kind, kinds, own_task
from prunus.tasks._tiles import Restorer, sight, tiled
from prunus.tasks.classification import Classification, logits
from prunus.tasks.denoise import Denoising
from prunus.tasks.lm import LanguageModelling
from prunus.tasks.multilabel import MultiLabel
from prunus.tasks.regression import Regression
from prunus.tasks.segment import Segmentation
from prunus.tasks.sr import SuperResolution
from prunus.tasks.text import TextClassification

__all__ = [
    "DEFAULT",
    "Answer",
    "Classification",
    "Denoising",
    "Given",
    "Kind",
    "LanguageModelling",
    "MultiLabel",
    "Options",
    "Prediction",
    "Regression",
    "Restorer",
    "Segmentation",
    "SuperResolution",
    "Task",
    "TextClassification",
    "find_kind",
    "kinds",
    "logits",
    "own_task",
    "picture",
    "plain",
    "ranking",
    "sight",
    "tiled",
]
