"""The search for widths: which network of a space is best within a budget.

Its files, in the order in which to read them:

    space         the widths every axis may have, as genes
    journal       what was evaluated, kept through a kill
    proposals     networks within the budget: mended, mutated, crossed
    strategies    what is evaluated next: evolution, greedy, random
    evaluation    scores: a race over images, by one process or many
    engine        from the first network to the winner
    providers     weights for any widths
    supernet      one network trained at random widths
    trial         networks tried on data
    charts        the charts of a search
"""

from prunus.search.engine import Result, search
from prunus.search.evaluation import CHUNKS, Evaluator, Ranks, Score
from prunus.search.journal import Candidate
from prunus.search.proposals import Room, drawn
from prunus.search.providers import Inherit, drawn_anew, put_back
from prunus.search.space import Orders, Space, Widths, best_first
from prunus.search.strategies import Evolution, Greedy, Random, Strategy
from prunus.search.supernet import Sampling, Stepping, Supernet, Together
from prunus.search.trial import (
    Maker,
    Parts,
    Trial,
    labels_hash,
    moving_norms,
    parted,
    tensors_hash,
    to_renew_with,
    tried_on,
)

__all__ = [
    "CHUNKS",
    "Candidate",
    "Evaluator",
    "Evolution",
    "Greedy",
    "Inherit",
    "Maker",
    "Orders",
    "Parts",
    "Random",
    "Ranks",
    "Result",
    "Room",
    "Sampling",
    "Score",
    "Space",
    "Stepping",
    "Strategy",
    "Supernet",
    "Together",
    "Trial",
    "Widths",
    "best_first",
    "drawn",
    "drawn_anew",
    "labels_hash",
    "moving_norms",
    "parted",
    "put_back",
    "search",
    "tensors_hash",
    "to_renew_with",
    "tried_on",
]
