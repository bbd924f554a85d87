"""Which axes shrink together: those of the same place in all blocks, and those that a config says together."""

import random
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn

from prunus.graph import trace
from prunus.graph.fields import reading
from prunus.surgery import shrink
from tests.lib.blocks import Block


@dataclass
class Sizes:
    """What a network is made from; `inner` may be left open, and `aside` is read by nothing."""

    width: int = 24
    heads: int = 4
    inner: int | None = None
    aside: int = 5


class Made(nn.Module):
    """A stream with heads on it; what varies is what the constructor computes from the sizes."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.heads, width = config.heads, config.width
        self.size = width // self.heads
        inner = config.inner if config.inner is not None else 2 * width
        self.stem = nn.Linear(7, width)
        self.values = nn.Linear(width, self.heads * self.size)
        self.mixed = nn.Linear(self.heads * self.size, width)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(2))
        self.head = nn.Linear(width, 3)
        self.scale = self.size**-0.5

    def forward(self, x):
        x = self.stem(x)
        values = self.values(x).unflatten(-1, (-1, self.size)) * self.scale
        x = x + self.mixed(values.relu().flatten(-2))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Frequencies(Made):
    """Numbers that are computed from the width, and that no file holds."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("wave", torch.linspace(0, 1, config.width), persistent=False)

    def forward(self, x):
        return super().forward(x) + self.wave.sum()


class Refusing(Made):
    """A class that takes no widths but multiples of eight."""

    def __init__(self, config):
        if config.width % 8:
            raise ValueError("a multiple of 8, please")
        super().__init__(config)


def traced(kind, config):
    model = kind(config)
    return model, trace(model, torch.randn(2, 7), modes="eval")


def by_fields(graph):
    return {tuple(sorted(path[1] for path in tie.fields)): tie for tie in graph.ties.tied}


def test_blocks_of_a_model_without_a_config_are_tied_place_by_place():
    model = nn.Sequential(
        nn.Linear(4, 8), *(Block(8, 12) for _ in range(3)), Block(8, 10), nn.Linear(8, 6), nn.Linear(6, 2)
    )
    ties = trace(model, torch.randn(2, 4)).ties
    assert {tie.axes for tie in ties.tied} == {("0",), ("1.up", "2.up", "3.up"), ("4.up",), ("5",)}
    assert all(tie.parts in (6, 8, 10, 12) and not tie.fields for tie in ties.tied)
    assert not ties.held and not ties.added


def test_a_config_says_heads_and_width_together_and_what_it_left_open_alone():
    _, graph = traced(Made, Sizes())
    found = by_fields(graph)
    assert found.keys() == {("heads", "width"), ("inner",)}
    assert found["heads", "width"].parts == 4 and found["inner",].parts == 48
    assert set(found["inner",].axes) == {"blocks.0.up", "blocks.1.up"}
    assert graph.ties.added == {("config", "inner"): 48}
    assert all(
        "scale" in graph.ties.held[name] or "alone" in graph.ties.held[name] for name in graph.ties.held
    )


@pytest.mark.parametrize("kind", [Sizes, SimpleNamespace])
def test_the_config_of_the_small_model_makes_it(kind):
    config = kind(width=24, heads=4, inner=None)
    model, graph = traced(Made, config)
    widths = {name: axis.size for name, axis in graph.axes.items()}
    for tie in graph.ties.tied:
        widths |= {name: widths[name] // tie.parts * (tie.parts // 2) for name in tie.axes}
    assert graph.misfits(widths) == []
    small = shrink(model, graph, {name: range(width) for name, width in widths.items()})
    assert (small.config.width, small.config.heads, small.config.inner) == (12, 2, 24)
    again = Made(small.config)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(torch.ones(1, 7)), small(torch.ones(1, 7)))
    assert (config.width, config.heads, config.inner) == (24, 4, None)


def test_a_config_says_what_it_can_beside_blocks_that_differ_whoever_has_asked_for_the_ties():
    model, asked = traced(Made, Sizes())
    keep = {name: range(asked.axes[name].size // 2) for name in by_fields(asked)["heads", "width"].axes}
    keep |= {"blocks.0.up": range(10)}
    for graph in (traced(Made, Sizes())[1], asked):
        config = shrink(model, graph, keep).config
        assert (config.width, config.heads, config.inner) == (12, 2, 48)


def test_threads_that_watch_one_class_wait_for_each_other():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with reading({"config": Sizes()}):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with reading({"config": Sizes()}):
        thread.start()
        assert not entered.wait(0.3)
    leave.set()
    thread.join()
    assert "__getattribute__" not in vars(Sizes)


def test_widths_that_no_config_says_leave_it_as_it_is():
    model, graph = traced(Made, Sizes())
    small = shrink(model, graph, {"blocks.0.up": range(10)})
    assert small.config == Sizes()
    assert graph.misfits(graph.widths({"blocks.0.up": range(10)}))


def test_numbers_that_no_file_holds_keep_their_sizes():
    _, graph = traced(Frequencies, Sizes())
    assert by_fields(graph).keys() == {("inner",)}
    assert any("wave" in why for why in graph.ties.held.values())


def test_sizes_that_the_class_refuses_are_found_out():
    _, graph = traced(Refusing, Sizes(width=32, heads=8))
    sizes = {name: axis.size for name, axis in graph.axes.items()}
    tie = by_fields(graph)["heads", "width"]

    def misfits(parts):
        return graph.misfits(sizes | {name: sizes[name] // tie.parts * parts for name in tie.axes})

    assert tie.parts == 8 and misfits(4) == misfits(6) == []
    assert all("takes no such sizes" in misfits(parts)[0] for parts in (1, 3, 5, 7))


def test_classes_and_objects_are_as_they_were():
    config = Sizes()
    model, graph = traced(Made, config)
    assert graph.ties.tied
    assert "__getattribute__" not in vars(Sizes) and config == Sizes()
    assert type(model.config.width) is int and not nn.modules.module._global_parameter_registration_hooks


def drawn():
    """One number each from the states that a constructor may draw from."""
    return random.random(), numpy.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_random_numbers_go_on_as_if_nothing_had_been_made():
    class Drawing(Made):
        def __init__(self, config):
            super().__init__(config)
            self.offset = nn.Parameter(torch.full((3,), sum(drawn())))

        def forward(self, x):
            return super().forward(x) + self.offset

    def begin():
        random.seed(1), numpy.random.seed(1), torch.manual_seed(1)  # noqa: NPY002

    model = Drawing(Sizes())
    begin()
    expected = drawn()
    begin()
    assert trace(model, torch.ones(2, 7), modes="eval").ties.tied
    assert drawn() == expected


def test_modules_among_the_arguments_are_not_kept():
    class Holding(Made):
        def __init__(self, config, aside):
            super().__init__(config)
            self.aside = aside

    graph = trace(Holding(Sizes(), [nn.Linear(2, 2)]), torch.ones(2, 7), modes="eval")
    assert graph.maker is None and graph.config is None
    assert not any(tie.fields for tie in graph.ties.tied)


def test_a_config_with_circles_and_tables_is_walked_once():
    config = SimpleNamespace(
        width=24, heads=4, inner=None, labels={f"label {n}": n for n in range(200)}, again=[], sizes=[7, 9]
    )
    config.again.append(config)
    _, graph = traced(Made, config)
    assert {path[1:] for path in graph.config.fields} == {("width",), ("heads",), ("sizes", 0), ("sizes", 1)}
    assert ("heads", "width") in by_fields(graph)
