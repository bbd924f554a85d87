"""Data for tasks of language, from a SPEC: texts with classes, or a stream of tokens in blocks.

What is held out is decided by the content of each text, before it is turned into tokens.
"""

import warnings
from collections.abc import Mapping

import numpy as np

from prunus.data.corpus import Corpus, read_corpus
from prunus.data.documents import Columns
from prunus.data.fingerprint import Fingerprint, parts_of
from prunus.data.load import Data, hold_out_missing
from prunus.data.sequences import Padded, pack
from prunus.data.split import Split
from prunus.data.survey import ALL
from prunus.data.tokens import Bytes, Tokenizer
from prunus.errors import UserError
from prunus.options import Count, check_value

LEAST_TEXTS = 3  # of which one each becomes train, val and test


def load_texts(
    spec: str,
    tokenizer: Tokenizer | None = None,
    *,
    length: int = 256,
    text_column: str = "text",
    label_column: str = "label",
    seed: int = 0,
    val_share: float = 0.05,
    skip_broken: bool = False,
) -> Data:
    """Load texts and their classes.

    Args:
        spec: text:DIR with a folder for each class, csv:PLACE, jsonl:PLACE or parquet:PLACE.
        tokenizer: What turns texts into tokens; None: bytes.
        length: The number of tokens to which longer texts are cut; a warning counts them.
        text_column: The column of the texts.
        label_column: The column of the classes: their names, or numbers from 0.
        seed: The seed that chooses which part of train becomes `val`.
        val_share: The share of each class to hold out as `val` where there is none, at least one text.
        skip_broken: Whether to leave out texts that are empty or cannot be read; otherwise they are an error.

    Returns:
        The data; their example is the longest text of train.

    Raises:
        UserError: Files or columns are missing, texts are empty or no UTF-8, classes are missing, or there are too few.
    """
    check_value("length", length, Count)
    tokenizer = tokenizer or Bytes()
    corpus = read_corpus(spec, Columns(text=text_column, label=label_column), skip_broken=skip_broken)
    parts: dict[str, Split] = {}
    cut = 0
    for name, documents in corpus.splits.items():
        texts, too_long = tokenizer.frame(documents.texts, length)
        cut += too_long
        parts[name] = Split(Padded(texts, tokenizer.pad), documents.labels, np.arange(len(texts)))
    if cut:
        total = sum(map(len, parts.values()))
        warnings.warn(
            f"{cut} of {total} texts in {spec} are longer than {length} tokens, and are cut there; --length "
            "(length=...) says where.",
            UserWarning,
            stacklevel=2,
        )
    splits = hold_out_missing(spec, parts, corpus.splits["train"].keys, (val_share, seed))
    train = splits["train"]
    assert isinstance(train.source, Padded)
    longest = max(train.members.tolist(), key=[len(text) for text in train.source.texts].__getitem__)
    example = train.source.read(np.array([longest]), None)
    tokens = f"{tokenizer.name}, at most {length} of a text, {cut} texts cut"
    fingerprint = fingerprint_of(corpus, splits, tokens)
    return Data(spec, corpus.classes, example, train, splits["val"], splits["test"], fingerprint)


def load_blocks(
    spec: str,
    tokenizer: Tokenizer | None = None,
    *,
    length: int = 256,
    text_column: str = "text",
    seed: int = 0,
    val_share: float = 0.05,
    skip_broken: bool = False,
) -> Data:
    """Load texts as blocks of tokens, each with the tokens that follow as targets.

    Args:
        spec: text:FILE, text:DIR, csv:PLACE, jsonl:PLACE or parquet:PLACE.
        tokenizer: What turns texts into tokens; None: bytes.
        length: The number of tokens of a block.
        text_column: The column of the texts.
        seed: The seed that chooses which texts of train become `val`.
        val_share: The share of the texts to hold out as `val` where there is none, at least one text.
        skip_broken: Whether to leave out texts that are empty or cannot be read; otherwise they are an error.

    Returns:
        The data; their example is a block.

    Raises:
        UserError: Files or columns are missing, texts are empty or no UTF-8, or there are too few, or too little in
            them for one block.
    """
    check_value("length", length, Count)
    tokenizer = tokenizer or Bytes()
    corpus = read_corpus(spec, Columns(text=text_column), skip_broken=skip_broken)
    missing, count = LEAST_TEXTS - len(corpus.splits), len(corpus.splits["train"].texts)
    if count <= missing:
        raise UserError(
            f"{spec} has {count} text{'s' * (count > 1)} to train on; at least {missing + 1} are needed to hold out "
            "what it lacks of val and test. Of a single file, each paragraph after a blank line is a text; a folder "
            "may have train, val and test in it."
        )
    tokens = {name: tokenizer.split(documents.texts) for name, documents in corpus.splits.items()}
    parts = {
        name: Split(Padded(tokens[name], tokenizer.pad), documents.labels, np.arange(len(documents.texts)))
        for name, documents in corpus.splits.items()
    }
    chosen = hold_out_missing(spec, parts, corpus.splits["train"].keys, (val_share, seed))
    splits = {name: packed(spec, name, split, tokenizer, length) for name, split in chosen.items()}
    example, _ = splits["train"].read(np.array([0]))
    fingerprint = fingerprint_of(corpus, splits, f"{tokenizer.name}, in blocks of {length}")
    return Data(spec, None, example, splits["train"], splits["val"], splits["test"], fingerprint)


def packed(spec: str, name: str, split: Split, tokenizer: Tokenizer, length: int) -> Split:
    """Pack the texts of a split into blocks; UserError if they do not fill one."""
    assert isinstance(split.source, Padded)
    texts = [split.source.texts[index] for index in split.members.tolist()]
    blocks = pack(texts, length, tokenizer.end)
    if not len(blocks):
        total = sum(map(len, texts)) + len(texts) * (tokenizer.end is not None)
        raise UserError(
            f"{name!r} of {spec} has {total} tokens in {len(texts)} texts, but a block of {length} takes {length + 1}; "
            "give more text, or a smaller --length (length=...)."
        )
    return blocks


def fingerprint_of(corpus: Corpus, splits: Mapping[str, Split], tokens: str) -> Fingerprint:
    """Make the fingerprint of texts; tokens: how they become tokens, in words."""
    own = len(corpus.splits) > 1
    return Fingerprint(
        hashed=ALL,
        split_by="content",
        classes=corpus.classes,
        class_names=corpus.class_names,
        skipped=corpus.skipped,
        splits=parts_of(splits),
        items={
            f"{split}: {name}" if own else name: f"{label}:{digest.hex()}"
            for split, documents in corpus.splits.items()
            for name, label, digest in zip(
                documents.names, documents.labels.tolist(), documents.digests, strict=True
            )
        },
        tokens=tokens,
    )
