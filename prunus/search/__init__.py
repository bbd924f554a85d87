"""The search for widths: which network of a space is best within a budget.

Its files, in the order in which to read them:

    space         the widths every axis may have, as genes
    journal       what was evaluated, kept through a kill
    proposals     networks within the budget: mended, mutated, crossed
    strategies    what is evaluated next: evolution, greedy, random
    evaluation    scores: a race over images, by one process or many
    engine        from the first network to the winner
    providers     weights for any widths
    supernet      one network trained at many widths
    trial         networks evaluated on data
    charts        the charts of a search
"""

from prunus.search.engine import Result, search
from prunus.search.evaluation import CHUNKS, Evaluator, Ranks, Score
from prunus.search.journal import Candidate
from prunus.search.proposals import Room, drawn
from prunus.search.providers import Inherit, drawn_anew, put_back
from prunus.search.space import Orders, Space, Widths, best_first
from prunus.search.strategies import Evolution, Greedy, Random, Strategy
from prunus.search.supernet import Sampling, StepCounter, Supernet, SupernetTask
from prunus.search.trial import (
    Builder,
    ImageEvaluator,
    SearchSplits,
    calibration_set,
    labels_hash,
    moving_norms,
    scorer,
    split_training,
    tensors_hash,
)

__all__ = [
    "CHUNKS",
    "Builder",
    "Candidate",
    "Evaluator",
    "Evolution",
    "Greedy",
    "ImageEvaluator",
    "Inherit",
    "Orders",
    "Random",
    "Ranks",
    "Result",
    "Room",
    "Sampling",
    "Score",
    "SearchSplits",
    "Space",
    "StepCounter",
    "Strategy",
    "Supernet",
    "SupernetTask",
    "Widths",
    "best_first",
    "calibration_set",
    "drawn",
    "drawn_anew",
    "labels_hash",
    "moving_norms",
    "put_back",
    "scorer",
    "search",
    "split_training",
    "tensors_hash",
]
