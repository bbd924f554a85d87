"""Files as rows that take little memory."""

import os

import pytest

from prunus.data.table import Files, Texts

NAMES = ["a/1.png", "ä/2.png", "", os.fsdecode(b"no utf-8 \xff.png")]


def test_texts_are_given_back_by_number_and_in_parts():
    texts = Texts(iter(NAMES))
    assert list(texts) == NAMES and len(texts) == 4
    assert [texts[index] for index in range(-4, 4)] == NAMES * 2
    assert texts[1:] == NAMES[1:] and texts[::-2] == NAMES[::-2]
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"there are 4 texts, but number {index}"):
            texts[index]
    assert list(Texts([])) == []


def test_files_are_paths_below_their_folder(tmp_path):
    files = Files(tmp_path, Texts(NAMES[:2]))
    assert list(files) == [(f"{tmp_path}/{name}", tmp_path / name) for name in NAMES[:2]]
    assert files[1:] == [files[1]] and len(files) == 2
