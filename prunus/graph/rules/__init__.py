"""Rules: one small function per operator, registered under the operator's name.

Its files, in the order in which to read them:

    registry       registering and finding a rule
    elementwise    operators that keep the shape of their input
    products       convolutions, matrix products, attention, embeddings
    norms          norms, reductions, softmax
    space          pooling, padding, resizing, shuffles
    shapes         operators that move, split or join dimensions
    indexing       indexing, scattering, sorting
    recurrent      recurrent layers and cells in one operator
"""

from prunus.graph.rules import elementwise, indexing, norms, products, recurrent, shapes, space
from prunus.graph.rules.registry import find, rule

__all__ = [
    "elementwise",
    "find",
    "indexing",
    "norms",
    "products",
    "recurrent",
    "rule",
    "shapes",
    "space",
]
