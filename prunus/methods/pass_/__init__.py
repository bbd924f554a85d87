"""PASS: a visual prompt and a recurrent hypernetwork emit channel masks.

Its files, in the order in which to read them:

    config          the options
    statistics      the statistics of the weights that the mask network reads
    prompt          the visual prompt
    hypernetwork    the recurrent mask network
    search          PASS, also for training loops of your own
    charts          the masks over the search
    method          the paper, departures from it, and prune
"""

from prunus.methods.pass_.config import Config
from prunus.methods.pass_.method import prune
from prunus.methods.pass_.search import PASS

__all__ = [
    "PASS",
    "Config",
    "prune",
]
