"""A split by content: whoever is held out stays so, whatever is added."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.data.split import hold_out_by_content

KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=40, max_size=120, unique=True)


def held(keys, labels, share=0.2, seed=0):
    rest, out = hold_out_by_content(np.array(keys, np.uint64), np.array(labels), share, ("test", seed))
    assert sorted([*rest, *out]) == list(range(len(keys)))
    return {keys[index] for index in out}


@settings(deadline=None)
@given(KEYS, st.randoms())
def test_an_image_that_is_added_moves_no_other(keys, random):
    """Where the share holds out somebody of each class and leaves somebody, as in all but tiny classes."""
    before, added = keys[:-5], keys[-5:]
    labels = {key: int(key) % 2 for key in keys}
    out = held(before, [labels[key] for key in before])
    sides = {(labels[key], key in out) for key in before}
    threshold_met = {(c, side) for c in (0, 1) for side in (True, False)}
    mixed = [*before, *added]
    random.shuffle(mixed)
    now = held(mixed, [labels[key] for key in mixed])
    if sides == threshold_met and not forced(before, labels):
        assert now & set(before) == out


def forced(keys, labels):
    """Whether in some class nobody was below the share, so that one was taken all the same."""
    from prunus.data.split import places

    at = dict(zip(keys, places(np.array(keys, np.uint64), ("test", 0)), strict=True))
    return any(not any(at[k] < 0.2 for k in keys if labels[k] == c) for c in (0, 1))


def test_about_the_share_is_held_out_of_each_class():
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000).tolist()
    labels = [0] * 10_000 + [1] * 10_000
    out = held(keys, labels)
    for label in (0, 1):
        count = sum(key in out for key in keys[10_000 * label : 10_000 * (label + 1)])
        assert abs(count - 2000) < 5 * (10_000 * 0.2 * 0.8) ** 0.5  # five standard deviations


def test_each_class_gives_one_and_keeps_one():
    for seed in range(30):
        keys = [11, 12, 21, 22, 31]
        rest, out = hold_out_by_content(
            np.array(keys, np.uint64), np.array([0, 0, 1, 1, 2]), 0.05, ("val", seed)
        )
        assert [sum(keys[i] // 10 == c for i in out) for c in (1, 2, 3)] == [1, 1, 0]
        rest, out = hold_out_by_content(
            np.array(keys, np.uint64), np.array([0, 0, 1, 1, 2]), 0.95, ("val", seed)
        )
        assert [sum(keys[i] // 10 == c for i in rest) for c in (1, 2, 3)] == [1, 1, 1]


def test_copies_of_an_image_are_on_one_side():
    keys = [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4] * 3
    for seed in range(20):
        rest, out = hold_out_by_content(
            np.array(keys, np.uint64), np.zeros(36, np.int64), 0.3, ("test", seed)
        )
        assert not {keys[i] for i in out} & {keys[i] for i in rest} and len(out) and len(rest)


@pytest.mark.parametrize("other", [("test", 1), ("val", 0)])
def test_seed_and_purpose_choose_others(other):
    keys = np.arange(1000, dtype=np.uint64)
    labels = np.zeros(1000, np.int64)
    one, two = (set(hold_out_by_content(keys, labels, 0.2, by)[1]) for by in (("test", 0), other))
    assert 10 < len(one & two) < 90  # independent: 40 in the mean
