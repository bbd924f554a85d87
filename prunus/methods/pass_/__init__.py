"""PASS: a visual prompt and a recurrent hypernetwork emit channel masks.

Its files, in the order in which to read them:

    config          the options
    statistics      the statistics of the weights that the mask network reads
    prompt          the visual prompt
    hypernetwork    the recurrent mask network
    slopes          the gradients that masks pass on to the scores
    state           the state of a search in a checkpoint
    search          PASS, for your own training loop
    charts          the charts of a search
    method          the paper, what departs from it, and prune
"""

from prunus.methods.pass_.config import Config
from prunus.methods.pass_.method import prune
from prunus.methods.pass_.search import PASS

__all__ = [
    "PASS",
    "Config",
    "prune",
]
