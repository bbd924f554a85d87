"""Lookahead: single weights, scored with their neighbouring layers.

Its files, in the order in which to read them:

    config    the options
    judge     the scores and masks that the options ask for
    method    the paper, departures from it, and prune
"""

from prunus.methods.lookahead.config import Config
from prunus.methods.lookahead.method import prune

__all__ = [
    "Config",
    "prune",
]
