"""Files are read through schemas: any damage is a FileError that names the file, the place, and what was expected."""

import pickle
import re
from typing import Annotated, Any, ClassVar

import msgspec
import pytest
import torch
from msgspec import Meta

from prunus import files
from prunus.errors import FileError
from prunus.files import Count, Real, Record, read_header, read_json, read_tensors, write_tensors


class Axis(msgspec.Struct, frozen=True):
    size: Count
    keep: list[Count]


class Pair(msgspec.Struct, frozen=True):
    low: Count
    high: Count

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("Expected .low below .high [0]")


class Example(Record, frozen=True, kw_only=True):
    remedy: ClassVar[str] = "Make it again."
    axes: dict[str, Axis]
    loss: Real = 0.0
    limit: Annotated[dict[str, Real], Meta(max_length=1)] = msgspec.field(default_factory=dict)
    pairs: list[Pair] = msgspec.field(default_factory=list)
    more: Any = None


WHOLE = '{"axes": {"a.b": {"size": 4, "keep": [0, 1]}, "c": {"size": 2, "keep": [1]}}, "loss": 0.5}'


def test_a_whole_file_is_read_and_unknown_entries_are_ignored(tmp_path):
    (tmp_path / "file.json").write_text(WHOLE.replace('"loss"', '"later": [1], "loss"'))
    found = read_json(tmp_path / "file.json", Example)
    assert found == Example(axes={"a.b": Axis(4, [0, 1]), "c": Axis(2, [1])}, loss=0.5)
    assert read_json(tmp_path / "file.json")["later"] == [1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[0, 1]", "[0, -1]", "$.axes['a.b'].keep[1]: Expected int >= 0, there is -1. Make it again."),
        ("[0, 1]", "[0, true]", "$.axes['a.b'].keep[1]: Expected int, got bool, there is True."),
        ("[1]", '"\\u001b[2Jx"', r"$.axes['c'].keep: Expected array, got str, there is '\x1b[2Jx'."),
        ('"size": 2, ', "", "$.axes['c']: Object missing required field size. Make it again."),
        ("0.5", "NaN", "not readable as JSON (JSON is malformed: invalid character"),
        ("0.5", "1e999", "out of range"),
        ("0.5", "1" + "0" * 400, "$.loss: Number out of range"),
        ("0.5", "1e301", "$.loss: Expected float <= 1e+300, there is 1e+301"),
        ("0.5", '0.5, "limit": {"macs": 1, "params": 1}', "$.limit: Expected object of length <= 1"),
        ("0.5", '0.5, "format": 7', "is of format 7, but this version of Prunus reads format 1"),
        ("0.5", '0.5, "format": "1"', "$.format: Expected int, got str, there is '1'"),
        ("0.5", '0.5, "more": ' + "[" * 65 + "]" * 65, "more than 64 lists inside each other"),
        ("0.5", '0.5, "more": ' + "[" * 9999 + "]" * 9999, "not readable as JSON (maximum recursion"),
        ("0.5}", "0.5", "not readable as JSON (Input data was truncated)"),
        (
            "0.5",
            '0.5, "pairs": [{"low": 2, "high": 1}]',
            "$.pairs[0]: Expected .low below .high [0]. Make it",
        ),
        (WHOLE, "", "not readable as JSON (Input data was truncated)"),
        (WHOLE, "[1]", "$: Expected object, got array. Make it again."),
        (WHOLE, "3", "$: Expected object, got int, there is 3. Make it again."),
    ],
)
def test_damage_is_named_with_its_place_and_what_to_do(tmp_path, old, new, words):
    file = tmp_path / "file.json"
    assert WHOLE.count(old) == 1
    file.write_text(WHOLE.replace(old, new))
    with pytest.raises(FileError, match=re.escape(words)) as error:
        read_json(file, Example)
    assert str(error.value).startswith(str(file)) and "\x1b" not in str(error.value)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "file.json").write_bytes(b'{"axes": {"\xff": 1}}')
    with pytest.raises(FileError, match=r"not readable as JSON .*invalid start byte"):
        read_json(tmp_path / "file.json")


def test_the_faulty_one_of_many_entries_is_found(tmp_path):
    axes = {f"layer{i}": {"size": 4, "keep": [0] if i != 777 else [0, None]} for i in range(1000)}
    (tmp_path / "file.json").write_bytes(msgspec.json.encode({"axes": axes}))
    with pytest.raises(FileError, match=re.escape("$.axes['layer777'].keep[1]: Expected int, got null")):
        read_json(tmp_path / "file.json", Example)


def test_a_file_that_is_too_large_missing_or_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 10)
    (tmp_path / "file.json").write_text(WHOLE)
    with pytest.raises(FileError, match="should hold at most 10 bytes, but holds more"):
        read_json(tmp_path / "file.json", Example)
    with pytest.raises(FileError, match=r"none.json does not exist."):
        read_json(tmp_path / "none.json")
    with pytest.raises(FileError, match=r"could not be read: .*directory"):
        read_json(tmp_path)


def test_a_header_is_read_through_a_schema_and_may_hold_nan(tmp_path):
    file = tmp_path / "file.safetensors"
    write_tensors(file, {"x": torch.ones(2)}, {"state": '{"axes": {}, "more": NaN}', "bad": '{"axes": 3}'})
    assert str(read_header(file, "state", Example).more) == "nan"
    with pytest.raises(FileError, match=r"bad in the header of .*file.safetensors is damaged at \$.axes"):
        read_header(file, "bad", Example)
    with pytest.raises(FileError, match=r"the header of .* should hold other, but does not. Make it again."):
        read_header(file, "other", Example)
    file.write_bytes(file.read_bytes()[:20])
    for read in (read_tensors, lambda path: read_header(path, "state", Example)):
        with pytest.raises(FileError, match="not a whole safetensors file"):
            read(file)


def test_our_errors_escape_what_would_act_on_a_terminal_also_after_a_journey_between_processes():
    error = FileError("no run in \x1b[2Ja\u202eb\udcff\x9bc\td\ne")
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again) == "no run in \\x1b[2Ja\\u202eb\\udcff\\x9bc\td\ne"
