"""Search: the best network of a space of widths within a budget.

Its files, in the order in which to read them:

    space         the widths every axis may have, as genes
    journal       evaluations in a file that survives a kill
    proposals     networks within the budget: sampled, mended, mutated, crossed
    strategies    which networks are evaluated next: evolution, greedy, random
    evaluation    scores: a race over images, in one process or several
    engine        search: from the first network to the winner
    providers     weights for any widths
    supernet      one network trained at many widths
    trial         networks evaluated on data
    charts        the charts of a search
"""

from prunus.search.engine import Result, search
from prunus.search.evaluation import CHUNKS, Evaluator, Ranks, Score
from prunus.search.journal import Candidate
from prunus.search.proposals import Feasible, sample
from prunus.search.providers import ClosedForm, Inherit, reinitialise, scatter
from prunus.search.space import LeastRatio, Orders, Ratios, Space, Widths, best_first
from prunus.search.strategies import Chance, Children, Evolution, Greedy, Random, Strategy
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
    "Chance",
    "Children",
    "ClosedForm",
    "Evaluator",
    "Evolution",
    "Feasible",
    "Greedy",
    "ImageEvaluator",
    "Inherit",
    "LeastRatio",
    "Orders",
    "Random",
    "Ranks",
    "Ratios",
    "Result",
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
    "labels_hash",
    "moving_norms",
    "reinitialise",
    "sample",
    "scatter",
    "scorer",
    "search",
    "split_training",
    "tensors_hash",
]
