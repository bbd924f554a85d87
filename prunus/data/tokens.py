"""Texts as tokens: bytes, or the tokenizer.json of a model's folder.

Bytes need no file and no library: a text is its UTF-8 bytes, 0 to 255, after which come two tokens that are no bytes.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunus.errors import FileError, UserError, one_line
from prunus.files import expand_home
from prunus.zoo import library, special_token

FILE = "tokenizer.json"


class Tokenizer(ABC):
    """The contract of what turns a text into tokens, whole numbers from 0, and back.

    Args:
        name: What it is, in words.
        size: The number of tokens that there are.
        pad: The token with which short texts are filled up.
        end: The token that ends a text in a stream of texts; None: nothing ends it.
    """

    def __init__(self, name: str, size: int, pad: int, end: int | None):
        self.name, self.size, self.pad, self.end = name, size, pad, end

    @abstractmethod
    def split(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Turn each text into its tokens alone, int64 (T,)."""

    @abstractmethod
    def frame(self, texts: Sequence[str], length: int) -> tuple[list[np.ndarray], int]:
        """Turn each text into tokens as a classifier reads it, cut to `length`; and count the texts that were cut."""

    @abstractmethod
    def join(self, tokens: Sequence[int]) -> str:
        """Turn tokens into text for people; tokens that stand for no text are left out."""


class Bytes(Tokenizer):
    """The UTF-8 bytes of a text; 256 fills up, 257 ends a text."""

    def __init__(self):
        super().__init__("bytes", 258, 256, 257)

    def split(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Turn each text into its bytes."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]

    def frame(self, texts: Sequence[str], length: int) -> tuple[list[np.ndarray], int]:
        """Turn each text into its first bytes."""
        found = self.split(texts)
        return [each[:length] for each in found], sum(len(each) > length for each in found)

    def join(self, tokens: Sequence[int]) -> str:
        """Turn bytes into text; what is no UTF-8 becomes a mark."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class FromFile(Tokenizer):
    """The tokenizer that a folder's tokenizer.json describes.

    Args:
        folder: The folder, whose config.json says which tokens pad and end a text.

    Raises:
        FileError: The file is damaged.
        UserError: The library tokenizers is missing.
    """

    def __init__(self, folder: Path):
        path = folder / FILE
        tokenizers = library("tokenizers", "hf")
        content = path.read_bytes()
        try:
            self.inner: Any = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exceptions
            raise FileError(
                f"{path} holds no tokenizer ({one_line(error)}); copy it again from its model's folder."
            ) from error
        self.inner.no_padding()
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        pad = special_token(folder, "pad")
        super().__init__(
            f"{FILE} {digest}", self.inner.get_vocab_size(), pad or 0, special_token(folder, "eos")
        )

    def split(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Turn each text into its tokens, without those that mark its beginning or end."""
        self.inner.no_truncation()
        found = self.inner.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(each.ids, np.int64) for each in found]

    def frame(self, texts: Sequence[str], length: int) -> tuple[list[np.ndarray], int]:
        """Turn each text into its tokens, with those that mark its beginning or end if the tokenizer has such."""
        self.inner.enable_truncation(length)
        found = self.inner.encode_batch(list(texts))
        return [np.array(each.ids, np.int64) for each in found], sum(bool(each.overflowing) for each in found)

    def join(self, tokens: Sequence[int]) -> str:
        """Turn tokens into text, without those that mark something."""
        return self.inner.decode(list(tokens), skip_special_tokens=True)


def find_tokenizer(folder: str | Path | None) -> Tokenizer:
    """Find the tokenizer of a model.

    Args:
        folder: The model's folder; None: the model has none.

    Returns:
        That of the folder's tokenizer.json; bytes where there is no such file.

    Raises:
        UserError: There is no such folder.
        FileError: The file is damaged.
    """
    if folder is None:
        return Bytes()
    place = expand_home(folder)
    if not place.is_dir():
        raise UserError(f"{folder} should be the folder of a tokenizer, with {FILE}, but is no folder.")
    return FromFile(place) if (place / FILE).is_file() else Bytes()
