"""Testing: checks that a method of one's own can be put through.

Its files, in the order in which to read them:

    networks    three tiny networks, and tiny images to classify with them
    check       check_method
"""

from prunus.testing.check import check_method
from prunus.testing.networks import NETWORKS, tiny_task

__all__ = [
    "NETWORKS",
    "check_method",
    "tiny_task",
]
