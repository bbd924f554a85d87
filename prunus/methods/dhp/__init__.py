"""DHP: latent vectors and hypernetworks make widths differentiable.

Its files, in the order in which to read them:

    config          the options
    hypernetwork    weights computed from latent vectors
    state           the state of a search in a checkpoint
    search          DHP, for your own training loop
    charts          the charts of a search
    method          the paper, what departs from it, and prune
"""

from prunus.methods.dhp.config import Config
from prunus.methods.dhp.method import prune
from prunus.methods.dhp.search import DHP

__all__ = [
    "DHP",
    "Config",
    "prune",
]
