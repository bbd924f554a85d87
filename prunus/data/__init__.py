"""Data: images and labels from a SPEC, in splits that give batches.

Its files, in the order in which to read them:

    split           a split: its order, its batches, what is held out
    decode          encoded images as upright gray or colour ones
    preprocessing   what turns an image into a model's input, as data
    images          sources of images, and augmenting
    readers         reading folders, parquet files, the hub
    survey          the content of images, and which cannot be read
    fingerprint     what a data set was, and what changed
    load            Data from a SPEC
"""

from prunus.data.fingerprint import Fingerprint, fingerprint_of_splits, parts_of
from prunus.data.load import Data, load_data
from prunus.data.preprocessing import Preprocessing
from prunus.data.split import Split, generator, hold_out

__all__ = [
    "Data",
    "Fingerprint",
    "Preprocessing",
    "Split",
    "fingerprint_of_splits",
    "generator",
    "hold_out",
    "load_data",
    "parts_of",
]
