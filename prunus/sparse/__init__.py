"""Single weights: masks that set some to zero, within layers that keep their shapes.

Its files, in the order in which to read them:

    ranking        the highest of many scores; LAMP
    squares        the operations of a network with every weight squared
    products       convolutions and matrix products with squared weights
    neighbours     the norms of the layers before and after every weight
    observed       the same, measured on data
    scores         magnitude, lookahead, Wanda
    gradients      SNIP, GraSP, SynFlow
    patterns       N:M and blocks
    allocation     the number of weights that stay in each layer
    selection      the weights that stay: masks from scores and a sparsity
    reach          the units that carry a signal, and those that are dead
    masks          masks applied to a model through training, and their size in a file
    permutation    the order of units under which an N:M pattern loses least
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
