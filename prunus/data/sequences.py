"""Sources of tokens: texts that are padded to the longest of a batch, and a stream that is cut into blocks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunus.data.split import Split


class Padded:
    """Texts of any length; a batch is padded at the right to its longest text.

    Args:
        texts: The tokens of each text, int64 (T,), T at least 1.
        pad: The token that fills up.
    """

    slow = False

    def __init__(self, texts: Sequence[np.ndarray], pad: int):
        self.texts, self.pad = texts, pad

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """Read {"input_ids": int64 (B, T), "attention_mask": int64 (B, T), 1 for tokens and 0 for padding}."""
        chosen = [self.texts[index] for index in indices.tolist()]
        shape = len(chosen), max(map(len, chosen), default=1)  # of several processes one may get no text
        tokens, mask = np.full(shape, self.pad, np.int64), np.zeros(shape, np.int64)
        for row, text in enumerate(chosen):
            tokens[row, : len(text)], mask[row, : len(text)] = text, 1
        return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}


class Blocks:
    """Blocks of one length, without padding.

    Args:
        tokens: The blocks, int64 (N, T).
    """

    slow = False

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """Read {"input_ids": int64 (B, T)}."""
        return {"input_ids": torch.from_numpy(self.tokens[indices])}


def pack(texts: Sequence[np.ndarray], length: int, end: int | None) -> Split:
    """Join texts to a stream, and cut it into blocks; the targets of a block are its tokens moved by one.

    Each token of the stream but the first is a target once; what is left at the end is not used.

    Args:
        texts: The tokens of each text, int64 (T,).
        length: The number of tokens of a block.
        end: The token that is put after each text; None: none is.

    Returns:
        The blocks with their targets, int64 (N, length); N may be 0.
    """
    ending = np.array([] if end is None else [end], np.int64)
    stream = np.concatenate([part for text in texts for part in (text, ending)])
    count = max(0, len(stream) - 1) // length
    tokens, targets = (stream[at : at + count * length].reshape(count, length) for at in (0, 1))
    return Split(Blocks(tokens), targets, np.arange(count))
