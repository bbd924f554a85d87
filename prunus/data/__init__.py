"""Data: images from a SPEC, with labels or degraded, in splits that give batches.

Its files, in the order in which to read them:

    split           a split: its order, its batches, what is held out
    decode          encoded images as upright gray or colour ones
    preprocessing   what turns an image into a model's input, as data
    images          sources of images, and augmenting
    readers         reading folders, parquet files, the hub
    survey          the content of images, and which cannot be read
    fingerprint     what a data set was, and what changed
    load            Data from a SPEC
    bicubic         resizing as MATLAB does
    degrade         noise, downscaling
    pairs           a split of degraded and clean images
    unlabelled      reading images without labels
    restoration     Data of pairs from a SPEC
"""

from prunus.data.bicubic import resize, to_bytes
from prunus.data.degrade import Degradation, Downscaling, Noise
from prunus.data.fingerprint import Fingerprint, fingerprint_of_splits, parts_of
from prunus.data.load import Data, load_data
from prunus.data.pairs import Pairs, PairSource, Patches
from prunus.data.preprocessing import Preprocessing
from prunus.data.restoration import load_pairs
from prunus.data.split import Split, generator, hold_out

__all__ = [
    "Data",
    "Degradation",
    "Downscaling",
    "Fingerprint",
    "Noise",
    "PairSource",
    "Pairs",
    "Patches",
    "Preprocessing",
    "Split",
    "fingerprint_of_splits",
    "generator",
    "hold_out",
    "load_data",
    "load_pairs",
    "parts_of",
    "resize",
    "to_bytes",
]
