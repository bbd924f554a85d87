"""Texts become tokens, and are split by content; what cannot be learned from is refused with its place."""

import warnings

import datasets
import numpy as np
import pytest
import torch

from prunus.data import Bytes, find_tokenizer, load_blocks, load_texts
from prunus.data.sequences import Padded, pack
from prunus.errors import FileError, UserError
from tests.lib.texts import WORDS, sentences, write_book, write_csv, write_jsonl, write_tokenizer


def texts_of(data, split):
    """The texts of a split, read back from its tokens."""
    part = data.splits[split]
    tokens = [part.read(np.array([at]))[0]["input_ids"][0].tolist() for at in range(len(part))]
    return [Bytes().join(each) for each in tokens]


def test_bytes_go_there_and_back():
    text = "Grüße 🐈, 你好"
    (tokens,) = Bytes().split([text])
    assert tokens.tolist() == list(text.encode()) and tokens.dtype == np.int64
    assert Bytes().join([*tokens, Bytes().end, Bytes().pad]) == text
    cut, count = Bytes().frame([text, "ab"], 3)
    assert [Bytes().join(each) for each in cut] == ["Gr\ufffd", "ab"] and count == 1


def test_a_batch_is_padded_to_its_longest_text():
    source = Padded([np.array([5, 6, 7]), np.array([8]), np.array([1, 2, 3, 4])], pad=9)
    found = source.read(np.array([1, 0]), None)
    assert found["input_ids"].tolist() == [[8, 9, 9], [5, 6, 7]]
    assert found["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert source.read(np.array([], np.int64), None)["input_ids"].shape == (0, 1)


@pytest.mark.parametrize("end", [None, 99])
@pytest.mark.parametrize("length", [1, 4, 7])
def test_every_token_of_the_stream_is_a_target_once(length, end):
    texts = [np.arange(at, at + size) for at, size in ((0, 5), (10, 1), (20, 9))]
    stream = [token for text in texts for token in (*text.tolist(), *([] if end is None else [end]))]
    blocks = pack(texts, length, end)
    count = (len(stream) - 1) // length
    inputs, targets = blocks.read(np.arange(len(blocks)))
    assert inputs["input_ids"].shape == targets.shape == (count, length)
    assert inputs["input_ids"].flatten().tolist() == stream[: count * length]
    assert targets.flatten().tolist() == stream[1 : count * length + 1]


def test_a_stream_of_one_token_more_than_a_block_fills_it():
    assert [len(pack([np.arange(size)], 8, None)) for size in (0, 8, 9, 16, 17)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "text"])
def test_texts_and_classes_come_from_every_source(kind, tmp_path):
    rows = sentences(60)
    if kind == "csv":
        write_csv(tmp_path / "a.csv", rows)
    elif kind == "jsonl":
        write_jsonl(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in rows])
    elif kind == "parquet":
        table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / "a.parquet")
    else:
        for number, (text, label) in enumerate(rows):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{number}.txt").write_text(text)
    data = load_texts(f"{kind}:{tmp_path}", length=64)
    assert data.classes == 3 and data.fingerprint.class_names == tuple(WORDS)
    found = {}
    for split, part in data.splits.items():
        found |= dict(zip(texts_of(data, split), part.labels.tolist(), strict=True))
    assert found == {text: list(WORDS).index(label) for text, label in rows}
    assert min(map(len, data.splits.values())) >= 3  # one of each class at least
    assert max(map(len, texts_of(data, "train"))) == data.example["input_ids"].shape[1]


def test_classes_may_be_numbers_and_columns_have_other_names(tmp_path):
    rows = [(text, list(WORDS).index(label)) for text, label in sentences(30)]
    file = write_csv(tmp_path / "a.csv", rows, ("body", "kind"))
    data = load_texts(f"csv:{file}", length=64, text_column="body", label_column="kind")
    assert data.classes == 3 and data.fingerprint.class_names is None


def test_a_folder_brings_its_own_splits(tmp_path):
    for seed, name in enumerate(("train", "test", "val")):
        write_csv(tmp_path / f"{name}.csv", sentences(12, seed))
    data = load_texts(f"csv:{tmp_path}", length=64)
    assert {name: len(split) for name, split in data.splits.items()} == dict.fromkeys(data.splits, 12)
    assert set(texts_of(data, "test")) == {text for text, _ in sentences(12, 1)}
    for name in ("train", "test"):
        (tmp_path / "books" / name).mkdir(parents=True)
        write_book(tmp_path / "books" / name / "a.txt")
    (tmp_path / "books" / "train" / "b.txt").write_text("another book " * 20)
    blocks = load_blocks(f"text:{tmp_path / 'books'}", length=16)
    assert len(blocks.test) == len(
        pack(Bytes().split([(tmp_path / "books/test/a.txt").read_text()]), 16, 257)
    )


def test_a_text_that_is_added_moves_no_other(tmp_path):
    rows = sentences(120)
    before = load_texts(f"csv:{write_csv(tmp_path / 'a.csv', rows)}", length=64)
    added = [("a tide of lamps", "sea"), *rows[::-1]]
    after = load_texts(f"csv:{write_csv(tmp_path / 'b.csv', added)}", length=64)
    for split in before.splits:
        assert set(texts_of(before, split)) == set(texts_of(after, split)) - {"a tide of lamps"}


def test_longer_texts_are_cut_and_counted(tmp_path):
    rows = [("wave " * 10, "sea"), ("tram " * 10, "city"), *sentences(20)]
    with pytest.warns(UserWarning, match=r"2 of 22 texts in .* are longer than 40 tokens, and are cut there"):
        data = load_texts(f"csv:{write_csv(tmp_path / 'a.csv', rows)}", length=40)
    assert data.example["input_ids"].shape == (1, 40)
    assert data.fingerprint.tokens == "bytes, at most 40 of a text, 2 texts cut"


def test_a_change_of_text_or_tokens_is_named(tmp_path):
    rows = sentences(30)

    def fingerprint(rows, **how):
        with warnings.catch_warnings(action="ignore"):
            return load_texts(f"csv:{write_csv(tmp_path / 'a.csv', rows)}", **how).fingerprint

    first = fingerprint(rows)
    assert not first.differences(fingerprint(rows))
    changed = [("wave salt", "sea"), *rows[1:]]
    assert "1 text changed: train 0" in first.differences(fingerprint(changed))
    (line,) = first.differences(fingerprint(rows, length=8))
    assert line.startswith(
        "texts were read as bytes, at most 256 of a text, 0 texts cut, are as bytes, at most 8"
    )


def test_the_tokenizer_is_that_of_the_folder(tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = find_tokenizer(write_tokenizer(tmp_path))
    assert (tokenizer.size, tokenizer.pad, tokenizer.end) == (22, 0, 2)
    (alone,) = tokenizer.split(["tram wave moon"])
    framed, cut = tokenizer.frame(["tram wave moon", "tram"], 4)
    assert framed[0].tolist() == [3, *alone[:2].tolist(), 2] and len(framed[1]) == 3 and cut == 1
    assert tokenizer.join(framed[0].tolist()) == "tram wave"
    (again,) = tokenizer.split(["tram wave moon tram wave"])  # is not cut after that
    assert len(again) == 5
    data = load_blocks(f"text:{write_book(tmp_path / 'book.txt')}", tokenizer, length=16)
    inputs, _ = data.train.read(np.arange(len(data.train)))
    assert int((inputs["input_ids"] == 2).sum()) > 0 and inputs["input_ids"].max() < 22
    assert data.fingerprint.tokens.startswith("tokenizer.json ")


def test_bytes_serve_where_there_is_no_tokenizer(tmp_path):
    assert isinstance(find_tokenizer(None), Bytes) and isinstance(find_tokenizer(tmp_path), Bytes)
    with pytest.raises(UserError, match=r"nowhere should be the folder of a tokenizer, with tokenizer\.json"):
        find_tokenizer(tmp_path / "nowhere")


def test_a_damaged_tokenizer_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": 3, \xff')
    with pytest.raises(FileError, match=r"tokenizer\.json holds no tokenizer .*copy it again"):
        find_tokenizer(tmp_path)


ROWS = sentences(30)
LABELS = "or another column with --label-column"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("", "sea"), (" \n ", "sea"), *ROWS], r"2 of 32 texts in .* are empty or cannot be read:\ntrain 0 is empty"),
        ([("wave", ""), *ROWS], r"1 of 31 texts of 'train' in .* have no class, the first is train 0; give each"),
        ([("wave", -100), ("tram", -100)], rf"all 2 texts of 'train' in .* have the class -100.*{LABELS}"),
        ([("wave", 0.5), ("tram", 1.5)], "should be texts or whole numbers, but are float; give another column"),
        ([("wave", 0), ("tram", 700)], "should be numbers from 0, but one of 2 texts has the class 700; number"),
        ([("wave", "sea"), ("tide", "sea")], "has one class, 'sea'; at least two are needed"),
        ([("wave", "sea"), ("tram", "city")], "has one example per class; at least two are needed to hold out"),
        ([(1, "sea"), (2, "city")], "column 'text' of 'train' in .* should hold texts, but holds 1, a int"),
    ],
)  # fmt: skip
def test_what_cannot_be_classified_is_refused(rows, message, tmp_path):
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_texts(f"csv:{write_csv(tmp_path / 'a.csv', rows)}", length=64)


def test_texts_without_a_class_are_left_out_and_counted(tmp_path):
    rows = [(text, list(WORDS).index(label)) for text, label in ROWS]
    data = load_texts(f"csv:{write_csv(tmp_path / 'a.csv', [('wave', -100), *rows])}", length=64)
    assert sum(map(len, data.splits.values())) == 30 and data.fingerprint.skipped == {"without class": 1}


def test_a_class_that_train_lacks_is_refused(tmp_path):
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(tmp_path / "test.csv", [("a lamp", "moon")])
    with pytest.raises(UserError, match=r"test 0 in .* has the class 'moon', which is none of the 3 classes"):
        load_texts(f"csv:{tmp_path}", length=64)


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_missing_column_is_named(column, tmp_path):
    file = write_csv(tmp_path / "a.csv", ROWS, ("text", "class") if column == "label" else ("body", "label"))
    there = "text, class" if column == "label" else "body, label"
    message = f"has no column '{column}', but {there}; give the right one with --{column}-column"
    with pytest.raises(UserError, match=message):
        load_texts(f"csv:{file}", length=64)


def test_empty_and_unreadable_texts_can_be_left_out(tmp_path):
    for number, (text, label) in enumerate(ROWS):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{number}.txt").write_text(text)
    (tmp_path / "sea" / "empty.txt").write_text("\n")
    (tmp_path / "sea" / "latin.txt").write_bytes("Öde".encode("latin1"))
    with pytest.raises(
        UserError, match=r"(?s)2 of 32 texts.*latin.txt is no UTF-8: byte 0xd6 at position 0.*iconv"
    ):
        load_texts(f"text:{tmp_path}", length=64)
    data = load_texts(f"text:{tmp_path}", length=64, skip_broken=True)
    assert data.fingerprint.skipped == {"empty": 1, "unreadable": 1}


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        (b"one\n\ntwo\n\nthree", 8, "'train' of .* has 4 tokens in 1 texts, but a block of 8 takes 9; give more text"),
        (b"one\n\ntwo\n", 2, r"has 2 texts to train on; at least 3 are needed .*each paragraph after a blank line"),
        (b" \n\n\t\n", 2, r"1 of 1 texts in .* are empty or cannot be read:\nbook.txt is empty"),
        (b"a\xffb", 2, r"book\.txt is no UTF-8: byte 0xff at position 1 \(invalid start byte\); convert it"),
    ],
)  # fmt: skip
def test_a_file_that_fills_no_block_is_refused(content, length, message, tmp_path):
    (tmp_path / "book.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_blocks(f"text:{tmp_path / 'book.txt'}", length=length)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits", "unknown source of texts 'digits'.*text:PLACE"),
        ("text:nowhere", "text:nowhere should name a file or a folder, but it is not there"),
        ("csv:.", r"is empty: no \.csv files in it"),
        ("text:.", r"is empty: no \.txt files below it"),
    ],
)
def test_a_place_without_texts_is_refused(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load_blocks(spec)


def test_a_single_text_file_has_no_classes(tmp_path):
    with pytest.raises(
        UserError, match=r"is one file, so its texts have no classes\. Give text:DIR with a folder"
    ):
        load_texts(f"text:{write_book(tmp_path / 'book.txt')}")


def test_a_table_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nÖde,sea\n".encode("latin1"))
    with pytest.raises(UserError, match=r"the csv files in .* cannot be read: .*utf-8"):
        load_texts(f"csv:{tmp_path / 'a.csv'}")


def test_the_batches_of_a_split_depend_on_seed_and_epoch_alone(tmp_path):
    data = load_blocks(f"text:{write_book(tmp_path / 'book.txt')}", length=16)
    first = list(data.train.batches(8, seed=1, epoch=2, augment=True))
    later = list(data.train.batches(8, seed=1, epoch=2, augment=True, start=3))
    for (x, y), (again_x, again_y) in zip(first[3:], later, strict=True):
        assert torch.equal(x["input_ids"], again_x["input_ids"]) and torch.equal(y, again_y)
