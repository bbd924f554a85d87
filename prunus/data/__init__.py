"""Data: images and labels from a SPEC, in splits that give batches.

Its files, in the order in which to read them:

    split      a split: its order, its batches, what is held out
    images     decoding and augmenting images
    readers    reading folders, parquet files, the hub
    load       Data from a SPEC
"""

from prunus.data.load import Data, load_data
from prunus.data.split import Split, generator, hold_out

__all__ = [
    "Data",
    "Split",
    "generator",
    "hold_out",
    "load_data",
]
