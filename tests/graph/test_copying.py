"""Copies of models: what they hold acts on the copy, and what cannot be copied is named."""

import functools
import sys
import threading
import types
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import UserError
from prunus.graph import copy_model, make_skeleton
from prunus.graph.modules import list_modules
from tests.lib.models import torchvision_models
from tests.lib.nets import random_keep

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*layers).eval()


# ------------------------------------------------------------------ a forward replaced on the object
def by_partial_of_a_closure(model):
    old = model.forward
    model.forward = functools.partial(lambda module, x: old(x), model)


def by_closure(model):
    old = model.forward

    @functools.wraps(old)
    def forward(x, *, scale=1.0):
        return old(x) * scale

    model.forward = forward


def by_closure_over_the_model(model):
    kind = type(model)
    model.forward = lambda x: kind.forward(model, x)


def by_bound_method(model):
    model.forward = types.MethodType(lambda module, x: nn.Sequential.forward(module, x), model)


def by_a_kept_old_forward(model):
    """As tools for offloading do: the old method in an attribute, the new one takes the module."""

    def new_forward(module, *args):
        return module._old_forward(*args)

    model._old_forward = model.forward
    model.forward = functools.update_wrapper(functools.partial(new_forward, model), model.forward)


def of_one_layer(model):
    layer, inner = model[2], [model[2].forward]
    layer.forward = lambda x: inner[0](x)


def by_default_argument(model):
    def forward(x, old=model.forward):
        return old(x)

    model.forward = forward


WAYS = [
    by_partial_of_a_closure,
    by_closure,
    by_closure_over_the_model,
    by_bound_method,
    by_a_kept_old_forward,
    of_one_layer,
    by_default_argument,
]


@pytest.mark.parametrize("replace", WAYS)
def test_a_forward_replaced_on_the_object_is_the_copys_own(replace):
    model, plain = network(), network()
    replace(model)
    graph, keep = prunus.trace(model, X), random_keep(prunus.trace(plain, X))
    assert graph.axes.keys() == prunus.trace(plain, X).axes.keys()
    small = prunus.shrink(model, graph, keep)
    expected = prunus.shrink(plain, graph, keep)(X)
    assert torch.equal(small(X), expected)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(small(X), expected)  # it does not look at the original


GLOBAL = network()


def test_a_forward_that_finds_the_model_in_a_global_variable_is_refused_for_that():
    def forward(x):
        return nn.Sequential.forward(GLOBAL, x)

    GLOBAL.forward = forward
    with pytest.raises(UserError, match=r"replaced on the object by .*forward, which finds .* GLOBAL"):
        prunus.trace(GLOBAL, X)


class Engine:
    def __init__(self, model):
        self.network = model

    def run(self, x):
        return nn.Sequential.forward(self.network, x)


def test_a_forward_that_finds_the_model_in_an_object_is_refused_for_that():
    model = network()
    engine = Engine(model)
    model.forward = lambda x: engine.run(x)
    with pytest.raises(
        UserError, match=r"finds the model in the attribute network of a Engine that it closes over"
    ):
        prunus.trace(model, X)


def test_a_forward_that_is_an_objects_method_is_the_copys_own():
    model = network()
    model.forward = Engine(model).run
    copied = copy_model(model, {})
    assert copied.forward.__self__.network is copied
    assert prunus.trace(model, X).axes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_a_model_compiled_in_place_is_traced_as_it_was():
    model = network()
    model.compile()
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, random_keep(graph))
    assert small._compiled_call_impl is None and model._compiled_call_impl is not None


# -------------------------------------------------------------------------------------------- hooks
def test_hooks_of_a_copy_act_on_the_copy():
    model, seen = network(), []
    model[0].register_forward_pre_hook(lambda module, args: seen.append(module is model[0]))
    copied = copy_model(model, {})
    copied(X)
    model(X)
    assert seen == [True, True]  # in the copy, `model` is the copy


def test_the_handle_of_a_hook_in_a_copy_removes_the_copys_hook():
    model, seen = network(), []

    def see(*given, **named):
        seen.append(given[0])

    model.handles = [
        model[0].register_forward_hook(see),
        model[4].register_forward_hook(see, with_kwargs=True, always_call=True),
    ]
    first = copy_model(copy_model(model, {}), {})  # also the copy of a copy
    first(X)
    assert seen == [first[0], first[4]]
    for handle in first.handles:
        handle.remove()
    first(X)
    assert len(seen) == 2
    assert not first[4]._forward_hooks_with_kwargs and not first[4]._forward_hooks_always_called
    model(X)
    assert len(seen) == 4


def test_a_handle_whose_hook_is_gone_is_copied():
    model = network()
    model.handle = [nn.Linear(1, 1).register_forward_hook(print, with_kwargs=True)]
    copy_model(copy_model(model, {}), {}).handle[0].remove()


def test_a_users_own_hook_does_not_run_on_abstract_tensors():
    model = network()
    model[0].register_forward_hook(lambda module, args, out: print(out.sum().item()))
    assert prunus.trace(model, X).axes
    assert len(model[0]._forward_hooks) == 1
    assert not any(module._forward_hooks for module in make_skeleton(model).modules())


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_model_that_has_run_before_traces_like_a_fresh_one():
    """Its library collects hidden states with hooks that it installs when it is first called."""
    torchvision_models()  # transformers imports it
    transformers = pytest.importorskip("transformers", reason="the model is from transformers")
    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
    windows = {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    config = transformers.SegformerConfig(**sizes, **windows, decoder_hidden_size=12)
    torch.manual_seed(0)
    model, x = transformers.SegformerForSemanticSegmentation(config).eval(), torch.randn(1, 3, 32, 32)
    fresh = prunus.trace(model, x)
    model(x)
    again = prunus.trace(model, x)
    assert {n: a.size for n, a in again.axes.items()} == {n: a.size for n, a in fresh.axes.items()}
    assert len(again.ops) == len(fresh.ops)


# ---------------------------------------------------------------------- what cannot be copied
@pytest.mark.parametrize(
    ("attribute", "kind"),
    [(threading.Lock(), "lock"), ((n for n in range(3)), "generator"), (sys.__stdout__, "IO")],
)
def test_an_attribute_that_cannot_be_copied_is_named(attribute, kind):
    model = network()
    model[2].held = attribute
    before = dict(vars(model[2]))
    with pytest.raises(UserError, match=f"this Conv2d cannot be copied: its attribute 'held', a .*{kind}"):
        prunus.trace(model, X)
    assert vars(model[2]) == before


class Slots:
    __slots__ = ("size", "tensor")


@dataclass
class Config:
    width: int = 8
    parent: "Config | None" = None
    parts: list = field(default_factory=list)


def test_tensors_with_a_history_slots_cycles_and_generators_are_copied():
    model = network()
    weight = model[0].weight
    slots, config = Slots(), Config()
    slots.size, slots.tensor = 3, weight * 2
    config.parent, config.parts = config, [weight * 3, {"deep": (weight * 4,)}]
    model.slots, model.config, model.seen = slots, config, {"last": weight * 5}
    model.random = torch.Generator().manual_seed(7)
    copied = copy_model(model, {})
    assert copied.config.parent is copied.config and copied.config is not config
    for got, old in [
        (copied.slots.tensor, slots.tensor),
        (copied.config.parts[1]["deep"][0], config.parts[1]["deep"][0]),
        (copied.seen["last"], model.seen["last"]),
    ]:
        assert torch.equal(got, old) and got.is_leaf and got.data_ptr() != old.data_ptr()
    drawn = torch.randn(3, generator=copied.random)
    assert torch.equal(torch.randn(3, generator=model.random), drawn)
    graph = prunus.trace(model, X)
    prunus.shrink(model, graph, random_keep(graph))


def test_modules_are_listed_as_torch_lists_them():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(
        shared, nn.Sequential(nn.ReLU(), shared, nn.ModuleDict({"b": nn.Tanh()})), nn.ReLU()
    )
    model.register_module("none", None)
    model[1].add_module("back", model[2])
    assert list_modules(model) == list(model.named_modules())
