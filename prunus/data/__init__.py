"""Data: examples in splits that give batches, from a SPEC or of the user's own.

Its files, in the order in which to read them:

    examples        the contract of a split
    randomness      global random states, set and restored
    workers         processes that read batches ahead
    split           a split of images: its order, its batches, what is held out
    unpacking       a batch of a user's loader as inputs and targets
    loader          a split around a DataLoader
    stream          a split around any iterable of batches
    given           the split of whatever a user gives
    decode          encoded images as upright gray or colour ones
    preprocessing   what turns an image into a model's input, as data
    asked           how a user wants images to be read
    images          sources of images, and augmenting
    table           files as rows that take little memory
    readers         reading folders, parquet files, the hub
    survey          the content of images, and which cannot be read
    fingerprint     what a data set was, and what changed
    load            Data from a SPEC
    bicubic         resizing as MATLAB does
    degrade         noise, downscaling
    pairs           a split of pairs of images: degraded and clean, or images and label maps
    unlabelled      reading images without labels
    restoration     Data of pairs from a SPEC
    documents       reading texts
    corpus          texts that have been checked, their classes numbered
    tokens          texts as tokens
    sequences       sources of tokens: padded texts, blocks
    language        Data of texts from a SPEC
    label_maps      the class of every pixel
    label_folders   finding images and their label maps
    segmentation    Data of images and label maps from a SPEC
    tables          columns of files
    rows            Data of rows of tables from a SPEC
    targets         the targets of rows: numbers, or labels
"""

from prunus.data.asked import AS_EXPECTED, Crop, ImageOptions
from prunus.data.bicubic import resize, to_bytes
from prunus.data.degrade import Degradation, Downscaling, Noise, Scale, Sigma
from prunus.data.examples import NO_EXAMPLES, Examples
from prunus.data.fingerprint import Fingerprint, fingerprint_of_splits, parts_of
from prunus.data.given import split_given
from prunus.data.language import load_blocks, load_texts
from prunus.data.load import Data, load_data
from prunus.data.loader import LoaderSplit
from prunus.data.pairs import Pairs, PairSource, Patches, read_whole
from prunus.data.preprocessing import Preprocessing
from prunus.data.randomness import own_randomness, reseed
from prunus.data.restoration import load_pairs
from prunus.data.rows import Columns, Features, ReadTargets, load_rows
from prunus.data.segmentation import IGNORED, IgnoreIndex, load_label_maps
from prunus.data.sequences import Padded
from prunus.data.split import Split, generator, hold_out
from prunus.data.stream import StreamSplit
from prunus.data.targets import read_labels, read_numbers
from prunus.data.tokens import Bytes, Tokenizer, find_tokenizer
from prunus.data.unpacking import TARGETS, unpack, with_targets
from prunus.data.workers import WorkerCount

__all__ = [
    "AS_EXPECTED",
    "IGNORED",
    "NO_EXAMPLES",
    "TARGETS",
    "Bytes",
    "Columns",
    "Crop",
    "Data",
    "Degradation",
    "Downscaling",
    "Examples",
    "Features",
    "Fingerprint",
    "IgnoreIndex",
    "ImageOptions",
    "LoaderSplit",
    "Noise",
    "Padded",
    "PairSource",
    "Pairs",
    "Patches",
    "Preprocessing",
    "ReadTargets",
    "Scale",
    "Sigma",
    "Split",
    "StreamSplit",
    "Tokenizer",
    "WorkerCount",
    "find_tokenizer",
    "fingerprint_of_splits",
    "generator",
    "hold_out",
    "load_blocks",
    "load_data",
    "load_label_maps",
    "load_pairs",
    "load_rows",
    "load_texts",
    "own_randomness",
    "parts_of",
    "read_labels",
    "read_numbers",
    "read_whole",
    "reseed",
    "resize",
    "split_given",
    "to_bytes",
    "unpack",
    "with_targets",
]
