"""DHP: latent vectors and hypernetworks make widths differentiable.

Its files, in the order in which to read them:

    config          the options
    hypernetwork    latent vectors, and the weights made of them
    search          DHP, also for training loops of your own
    charts          the latents over the search
    method          the paper, departures from it, and prune
"""

from prunus.methods.dhp.config import Config
from prunus.methods.dhp.method import prune
from prunus.methods.dhp.search import DHP

__all__ = [
    "DHP",
    "Config",
    "prune",
]
