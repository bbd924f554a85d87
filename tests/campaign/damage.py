"""Damage to files as hypothesis draws it: bytes, JSON trees, headers of tensors, lines."""

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

VALUES: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    0.5,
    -0.5,
    2**31,
    2**63,
    2**64,
    10**30,
    10**400,
    1e-320,
    1e308,
    -1e308,
]
VALUES += ["", "1", "text", "\x1b[2J\x07\x9b", "[bold]x[/nothing]", "</script>", "\u202e", "x" * 5000, "\0"]
VALUES += [[], {}, [[]], {"": None}, [1, 2, 3], {"size": 1}, float("nan"), float("inf")]
DEEP = "DEEP"  # stands for lists inside each other


@st.composite
def json_trees(draw: Callable[..., Any], tree: Any) -> str:
    """Damage a JSON tree in one to three places; returns its text."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        places = [(None, None), *list_places(tree)]
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        value = copy.deepcopy(draw(st.sampled_from([*VALUES, DEEP])))  # later places may lie in it
        what = draw(st.sampled_from(["replace", "replace", "delete", "add", "repeat"]))
        if parent is None:
            tree = value if what == "replace" and draw(st.booleans()) else tree
        elif what == "replace":
            parent[key] = value
        elif what == "delete":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(["more", "\x1b]0;x\x07", "format", "[red]", "0"]))] = value
        else:
            parent.extend([value] if what == "add" else [parent[key]] * draw(st.sampled_from([1, 1000])))
    depth = draw(st.sampled_from([10, 70, 500, 100_000]))
    return json.dumps(tree).replace(f'"{DEEP}"', "[" * depth + "]" * depth)


def list_places(tree: Any) -> list[tuple[Any, Any]]:
    """List every (parent, key) of a tree."""
    found: list[tuple[Any, Any]] = []
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in entries:
        found += [(tree, key), *list_places(inner)]
    return found


@st.composite
def raw_bytes(draw: Callable[..., Any], data: bytes) -> bytes:
    """Cut bytes short, change, insert or repeat some."""
    what, at = draw(st.sampled_from(["cut", "flip", "insert", "repeat"])), draw(st.integers(0, len(data)))
    if what == "cut":
        return data[:at]
    if what == "flip":
        changed = bytearray(data)
        for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
            changed[place] ^= draw(st.integers(1, 255))
        return bytes(changed)
    if what == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
    return data[:at] + data[at : at + draw(st.integers(1, 500))] + data[at:]


@st.composite
def tensor_files(draw: Callable[..., Any], data: bytes) -> bytes:
    """Damage the header of a safetensors file, or the JSON that it holds as text."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    texts = [key for key, text in header.get("__metadata__", {}).items() if text.startswith("{")]
    if texts and draw(st.booleans()):
        header["__metadata__"][texts[0]] = draw(json_trees(json.loads(header["__metadata__"][texts[0]])))
        text = json.dumps(header)
    else:
        text = draw(json_trees(header))
    return struct.pack("<Q", len(text.encode())) + text.encode() + data[8 + length :]


@st.composite
def json_lines(draw: Callable[..., Any], data: bytes) -> bytes:
    """Damage one line of JSON lines, repeat it, or leave it out."""
    found = data.splitlines(keepends=True)
    at = draw(st.integers(0, len(found) - 1))
    what = draw(st.sampled_from(["tree", "tree", "tree", "repeat", "delete"]))
    changed = draw(json_trees(json.loads(found[at]))).encode() + b"\n" if what == "tree" else found[at]
    found[at : at + 1] = [changed] * {"tree": 1, "repeat": 2, "delete": 0}[what]
    return b"".join(found)


def damages(file: Path, *, json_only: bool = False) -> st.SearchStrategy[bytes]:
    """Return damaged contents of a file.

    Args:
        file: The whole file.
        json_only: Whether it stays JSON of some kind.

    Returns:
        A strategy.
    """
    data = file.read_bytes()
    if file.suffix == ".pt":
        return raw_bytes(data)
    if file.suffix == ".safetensors":
        return raw_bytes(data) | tensor_files(data)
    if file.suffix == ".jsonl":
        return raw_bytes(data) | json_lines(data)
    trees = json_trees(json.loads(data)).map(str.encode)
    return trees if json_only else raw_bytes(data) | trees
