"""Random networks, random keeps: what must hold for every one of them.

The reference is written here, apart from the package's own: every weight of a removed unit set to zero, run plainly.
"""

import copy
import itertools
import math
import tempfile
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus import surgery
from prunus.errors import TraceError
from prunus.selection import cost
from prunus.surgery import effective_tensors
from tests.lib import nets
from tests.lib.random_nets import (
    MAP_STEPS,
    TOKEN_STEPS,
    build,
    draws,
    map_programs,
    mixes,
    programs,
    token_programs,
)

CLOSE = {"rtol": 1e-8, "atol": 1e-9}
quick = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    phases=[Phase.generate],  # programs are short; making a failing one shorter takes minutes
    suppress_health_check=list(HealthCheck),
)


# ------------------------------------------------------------------------------------- what is checked
def traced(model, example, program):
    """The graph. A few networks have nothing to prune, and are drawn anew.

    They sum a padded shortcut and something shuffled, or norm parts of different lengths in equal groups.
    """
    try:
        return prunus.trace(model, example)
    except TraceError as error:
        joined = any(kind in repr(program) for kind in ("residual", "concat", "dense"))
        if joined and "may shrink" in str(error):
            reject()
        raise


def drawn_keep(data, graph):
    """Of every axis all units, one, or some."""
    keep = {}
    for name, axis in graph.axes.items():
        how = data.draw(st.sampled_from(["some", "one", "all"]), label=name)
        if how != "all":
            most = 1 if how == "one" else axis.size
            units = st.lists(st.integers(0, axis.size - 1), min_size=1, max_size=most, unique=True)
            keep[name] = data.draw(units, label=name)
    return keep


def staying(graph, keep):
    """Per tensor and dimension, a bool per position, read off the members of every axis."""
    found = {name: [torch.ones(n, dtype=torch.bool) for n in shape] for name, shape in graph.shapes.items()}
    for name, kept in keep.items():
        for member in graph.members(name):
            for unit in set(range(graph.axes[name].size)) - set(kept):
                found[member.tensor][member.dim][member.index[unit]] = False
    return found


def without(model, graph, keep):
    """A copy of `model` with zeros in every parameter at the removed units; buffers are left alone."""
    model = copy.deepcopy(model)
    stays = staying(graph, keep)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(outer(stays[name]))
    return model


def outer(masks):
    """Masks of the dimensions of a tensor as one mask of its shape."""
    return math.prod(
        mask.view([-1 if d == dim else 1 for d in range(len(masks))]) for dim, mask in enumerate(masks)
    )


def cut(tensor, stays):
    """The part of a tensor at the positions that stay."""
    for dim, mask in enumerate(stays):
        tensor = tensor.index_select(dim, mask.nonzero()[:, 0])
    return tensor


def parametrised(model):
    return any(".parametrizations." in name for name, _ in model.named_parameters())


def answer(model, example):
    """What a model gives, with the same random numbers at every call."""
    torch.manual_seed(0)
    return model(example)


def is_as_zeros(model):
    """Whether a unit at zero is the same as none, to the number: nothing mixes units, and nothing is drawn for them."""
    return not mixes(model) and not draws(model)


def check_shrink(model, graph, keep, example):
    small = prunus.shrink(model, graph, keep, verify="off")
    proof = surgery.verify(model, graph, keep, small)
    assert proof.holds and set(proof.modes) == {"eval", "train"}
    if is_as_zeros(model):
        got = small(example)
        if not parametrised(model):
            torch.testing.assert_close(got, without(model, graph, keep)(example), **CLOSE)
        torch.testing.assert_close(prunus.mask(model, graph, keep)(example), got, **CLOSE)
    return small


def check_training(model, graph, keep, small):
    """In training the small model gives what zeros give, and its running statistics are those of its units."""
    example, small = graph.modes["train"], copy.deepcopy(small).train()
    got = answer(small, example)
    assert got.shape == answer(copy.deepcopy(model).train(), example).shape
    if parametrised(model):
        return
    whole = without(model, graph, keep).train()
    if is_as_zeros(whole):
        torch.testing.assert_close(got, whole(example), **CLOSE)
        stays, buffers = staying(graph, keep), dict(small.named_buffers())
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(buffers[name], cut(buffer, stays[name]), **CLOSE)


def check_crop(model, graph, keep, example, small):
    """Gradients of a crop are those of the small model, at their places, and zero elsewhere."""
    model.zero_grad()
    torch.manual_seed(0)
    out = prunus.crop(model, graph, keep, example)
    expected = answer(small, example)
    torch.testing.assert_close(out, expected, **CLOSE)
    out.square().sum().backward()
    small.zero_grad()
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in small.named_parameters()}
    stays = staying(graph, keep)
    for name, parameter in model.named_parameters():
        if name not in stays:  # parametrised: the lengths and directions of a normed weight
            assert parameter.grad is not None
        elif gradients[name] is None:  # of training alone
            assert parameter.grad is None
        else:
            torch.testing.assert_close(cut(parameter.grad, stays[name]), gradients[name], **CLOSE)
            assert not parameter.grad[outer(stays[name]) == 0].any()


def check_cost(graph, keep, example, small):
    bare = copy.deepcopy(small).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bare(example.to("meta"))
    assert 2 * cost.macs(graph, keep) == counter.get_total_flops()
    if not parametrised(small):
        assert cost.params(graph, keep) == sum(parameter.numel() for parameter in small.parameters())
    assert cost.memory_mb(graph, keep) <= cost.memory_mb(graph)


def check_again(graph, keep, example, small):
    """The small model can be traced again, to the same axes; one of a single unit is none any more."""
    widths = graph.widths(keep).values()
    if min(widths) > 1:
        again = prunus.trace(small, example)
        assert Counter(axis.size for axis in again.axes.values()) == Counter(widths)
        return
    try:
        prunus.trace(small, example)
    except TraceError as error:
        assert "may shrink" in str(error)


def check_store(model, graph, keep, example, small):
    with tempfile.TemporaryDirectory() as folder:
        prunus.save(folder, small, keep, graph)
        loaded = prunus.load(folder, model)
    ours, theirs = effective_tensors(small), effective_tensors(loaded)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-12, atol=0)
    torch.testing.assert_close(answer(loaded, example), answer(small, example), rtol=1e-12, atol=1e-12)


def check_words(graph):
    modules = {name.rpartition(".")[0] for name in graph.parameters}
    for name in [*graph.axes, *graph.parameters, *modules - {""}]:
        assert graph.explain(name)


def check(program, data):
    model, example = build(program)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    graph = traced(model, example, program)
    keep = drawn_keep(data, graph)
    small = check_shrink(model, graph, keep, example)
    check_training(model, graph, keep, small)
    check_crop(model, graph, keep, example, small)
    check_cost(graph, keep, example, small)
    check_again(graph, keep, example, small)
    check_store(model, graph, keep, example, small)
    check_words(graph)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes


# ------------------------------------------------------------------------------------------- properties
@pytest.mark.parametrize("kind", [*MAP_STEPS, *TOKEN_STEPS])
def test_every_step_alone_shrinks_almost_everywhere(kind):
    """Fixing everything would satisfy all properties below."""
    for a, b in itertools.product(range(5), range(6)):
        steps = [(kind, a, b)]
        program = ("image", steps, [], "map") if kind in MAP_STEPS else ("vectors", [], steps, "each token")
        assert nets.share_on_axes(prunus.trace(*build(program))) >= 0.9, program


def test_a_proof_knows_the_units_beside_padding_though_the_padded_ones_were_fixed_later():
    steps = [("residual", 8, 20, [("conv", 17, 39), ("pixels", 20, 27)]), ("depthwise", 2, 5)]
    model, example = build(("image", steps, [], "mean"))
    graph = prunus.trace(model, example)
    assert len(graph.axes) == 2 and all(
        surgery.verify(model, graph, {name: [0]}).holds for name in graph.axes
    )


@quick
@given(program=map_programs, data=st.data())
def test_networks_on_maps(program, data):
    check(program, data)


@quick
@given(program=token_programs, data=st.data())
def test_networks_on_tokens(program, data):
    check(program, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(quick, max_examples=920)
@given(program=programs, data=st.data())
def test_many_networks(program, data):
    check(program, data)
