"""Options: what they take stands in their types, and every number has a range."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_type_hints

import pytest

from prunus import methods
from prunus.errors import UserError
from prunus.options import Checked, Count, Range, Rate, Share, alternatives, is_optional
from prunus.run import Settings
from prunus.search import Evolution, Greedy, Random
from prunus.train import Recipe

OPTIONS = {f"method {name}": methods.find(name).config_class for name in methods.names()}
OPTIONS |= {each.__name__: each for each in (Settings, Recipe, Evolution, Greedy, Random)}


@dataclass(frozen=True, kw_only=True)
class Some(Checked):
    """Options of every kind."""

    count: Count = 3
    share: Share = 0.5
    rate: Rate | None = None
    half_open: Annotated[float, Range(0, 1, below=True)] = 0.5
    odds: Annotated[float, Range(0, 1, above=True)] = 0.5
    size: Annotated[float, Range(0, above=True)] = 1.0
    between: Annotated[int, Range(1, 10)] = 5
    word: Literal["one", "other"] | None = None
    flag: bool | None = None
    names: tuple[str, ...] = ()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_number_among_the_options_has_a_range(name):
    """So that no method can forget to check one."""
    assert issubclass(OPTIONS[name], Checked)
    hints = get_type_hints(OPTIONS[name], include_extras=True)
    parts = [(option, *part) for option, hint in hints.items() for part in alternatives(hint)]
    assert not [option for option, kind, allowed in parts if kind in (int, float) and not allowed]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_range_is_checked_when_the_options_are_made(name):
    """A class whose own `__post_init__` forgets that of `Checked` would take these."""
    needed = {"epochs": 1} if OPTIONS[name] is Recipe else {}
    for option, hint in get_type_hints(OPTIONS[name], include_extras=True).items():
        for kind, allowed in alternatives(hint):
            if kind in (int, float) and allowed:
                with pytest.raises(UserError, match=f"^{option} should be"):
                    OPTIONS[name](**needed | {option: -7})
                if not is_optional(hint):
                    with pytest.raises(UserError, match=f"^{option} should be"):
                        OPTIONS[name](**needed | {option: None})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, "count should be a whole number from 1, but is 0; the nearest is 1."),
        ({"count": 2.4}, "count should be a whole number from 1, but is 2.4; the nearest is 2."),
        ({"count": 0.2}, "count should be a whole number from 1, but is 0.2; the nearest is 1."),
        ({"count": "3"}, "count should be a whole number from 1, but is '3'."),
        ({"count": None}, "count should be a whole number from 1, but is None."),
        ({"count": math.inf}, "count should be a whole number from 1, but is inf."),
        ({"count": True}, "count should be a whole number from 1, but is True; the nearest is 1."),
        ({"share": 7}, "share should be a number from 0 to 1, but is 7; the nearest is 1."),
        ({"share": math.nan}, "share should be a number from 0 to 1, but is nan."),
        ({"rate": -math.inf}, "rate should be a number from 0 to 100, but is -inf; the nearest is 0."),
        ({"half_open": 1}, "half_open should be a number from 0 and below 1, but is 1."),
        ({"half_open": -1}, "half_open should be a number from 0 and below 1, but is -1; the nearest is 0."),
        ({"odds": 0}, "odds should be a number above 0 and at most 1, but is 0."),
        ({"odds": 3}, "odds should be a number above 0 and at most 1, but is 3; the nearest is 1."),
        ({"size": math.inf}, "size should be a finite number above 0, but is inf."),
        ({"between": 11}, "between should be a whole number from 1 to 10, but is 11; the nearest is 10."),
        ({"word": "onee"}, "unknown word 'onee'. Did you mean one? Known: one, other."),
        ({"flag": "no"}, "flag should be True or False, but is 'no'."),
        ({"names": "head"}, "names should be a list of texts, but is the text 'head'; write ['head']."),
    ],
)
def test_the_sentence_names_the_range_and_the_nearest_value(wrong, words):
    with pytest.raises(UserError) as refused:
        Some(**wrong)
    assert str(refused.value) == words


def test_what_is_in_range_is_taken():
    Some(
        count=10**9, share=1, rate=100, half_open=0, odds=1.0, size=1e-9, between=10, word="other", flag=True
    )
    Some(rate=None, word=None, flag=None, names=["head"])
