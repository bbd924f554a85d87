"""Single weights: zeros within layers that keep their shapes. Scores and a sparsity give masks.

In the order in which they build on each other:

    ranking       the highest of many numbers, fast; LAMP
    squares, products, neighbours    the squared network: what stands before and behind every weight
    observed      what data shows of it
    scores        magnitude, lookahead, Wanda;  gradients: SNIP, GraSP, SynFlow
    patterns      N:M and blocks
    selection     how many weights stay in each layer, and which
    reach, masks  held through training, stored, and the units they leave dead
    permutation   the order of units under which N:M loses least
    formats       CSR and semi-structured tensors

Here is what one needs in a loop of one's own.
"""

from prunus.sparse.masks import dead as dead
from prunus.sparse.masks import finalise as finalise
from prunus.sparse.masks import held as held
from prunus.sparse.masks import hold as hold
from prunus.sparse.scores import active as active
from prunus.sparse.scores import lookahead as lookahead
from prunus.sparse.scores import magnitude as magnitude
from prunus.sparse.scores import maskable as maskable
from prunus.sparse.scores import sequential as sequential
from prunus.sparse.scores import wanda as wanda
from prunus.sparse.selection import Sparsity as Sparsity
from prunus.sparse.selection import choose as choose
