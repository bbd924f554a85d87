"""Testing: the check that every method passes, for methods of your own.

Its files, in the order in which to read them:

    networks    three tiny networks, and tiny images for them to classify
    check       check_method
"""

from prunus.testing.check import check_method
from prunus.testing.networks import NETWORKS, tiny_task

__all__ = [
    "NETWORKS",
    "check_method",
    "tiny_task",
]
