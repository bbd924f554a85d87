"""Single weights: zeros within layers that keep their shapes.

Its files, in the order in which to read them:

    ranking        the highest of many numbers; LAMP
    squares        the operations of a network with every weight squared
    products       matrix products over them
    neighbours     what stands before and after every weight
    observed       what data shows of it
    scores         magnitude, lookahead, Wanda
    gradients      SNIP, GraSP, SynFlow
    patterns       N:M and blocks
    allocation     how many weights stay in each layer
    selection      which weights stay
    reach          the units through which nothing passes
    masks          masks held through training, and stored
    permutation    the order of units under which N:M loses least
    formats        CSR and semi-structured tensors
"""

from prunus.sparse.allocation import Allocation
from prunus.sparse.masks import Masks, dead, finalise, held, hold, packed, survivors, unpacked
from prunus.sparse.patterns import contracted, unfit
from prunus.sparse.permutation import permuted
from prunus.sparse.ranking import top
from prunus.sparse.scores import active, lookahead, magnitude, maskable, sequential, wanda
from prunus.sparse.selection import choose, eligible

__all__ = [
    "Allocation",
    "Masks",
    "active",
    "choose",
    "contracted",
    "dead",
    "eligible",
    "finalise",
    "held",
    "hold",
    "lookahead",
    "magnitude",
    "maskable",
    "packed",
    "permuted",
    "sequential",
    "survivors",
    "top",
    "unfit",
    "unpacked",
    "wanda",
]
