"""The search for widths: which network of a space is best within a budget, wherever its scores come from.

In the order in which they build on each other:

    space        the widths every axis may have, as genes
    journal      what was found out, kept through a kill
    proposals    networks within the budget: mended, mutated, crossed
    strategies   what is looked at next: evolution, greedy, random
    evaluation   scores: a race over images, by one process or many
    engine       from the first network to the winner

Here is what a method needs.
"""

from prunus.search.engine import Result as Result
from prunus.search.engine import search as search
from prunus.search.evaluation import Evaluator as Evaluator
from prunus.search.evaluation import Ranks as Ranks
from prunus.search.journal import Candidate as Candidate
from prunus.search.proposals import Room as Room
from prunus.search.space import Space as Space
from prunus.search.space import best_first as best_first
from prunus.search.strategies import Evolution as Evolution
from prunus.search.strategies import Greedy as Greedy
from prunus.search.strategies import Random as Random
