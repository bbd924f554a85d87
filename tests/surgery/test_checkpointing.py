"""Gradient checkpointing, switched on before the trace or after the cut, changes nothing but memory."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import prunus
from tests.lib.models import torchvision_models
from tests.lib.nets import random_keep

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
REENTRANT = pytest.mark.parametrize("reentrant", [True, False])


class Net(nn.Module):
    """A residual block and a layer with dropout, each checkpointed or not."""

    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.wide, self.last, self.reentrant = nn.Linear(8, 16), nn.Linear(16, 4), reentrant

    def forward(self, x):
        x = x + self.maybe(self.block, x)
        return self.last(self.maybe(lambda x: nn.functional.dropout(self.wide(x), 0.5, self.training), x))

    def maybe(self, function, x):
        if self.reentrant is None:
            return function(x)
        return checkpoint(function, x, use_reentrant=self.reentrant)


def gradients(model, x):
    torch.manual_seed(1)
    model.train()(x.requires_grad_()).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


@REENTRANT
def test_before_or_after_it_is_the_same_cut_and_the_same_gradients(reentrant):
    plain, checkpointed = Net(), Net(reentrant).train()
    graph, keep = prunus.trace(checkpointed, X), random_keep(prunus.trace(plain, X))
    assert {name: axis.size for name, axis in graph.axes.items()} == {"block.0": 16, "wide": 16}
    small = prunus.shrink(checkpointed, graph, keep)
    expected = prunus.shrink(plain, prunus.trace(plain, X), keep)
    late = copy.deepcopy(expected)
    late.reentrant = reentrant
    wanted = gradients(expected, X.clone())
    for model in (small, late):
        for got, want in zip(gradients(model, X.clone()), wanted, strict=True):
            assert torch.equal(got, want)


def test_scores_by_gradients_are_the_same():
    plain, checkpointed = Net(), Net(False)
    graph, batches = prunus.trace(plain, X), [(X, None)]
    scores = [
        prunus.scores.taylor(model, graph, lambda output, _: output.square().sum(), batches)
        for model in (plain, checkpointed)
    ]
    assert all(torch.equal(score, scores[1][axis]) for axis, score in scores[0].items())


def test_a_sequence_in_segments():
    class Segments(nn.Sequential):
        def forward(self, x):
            return checkpoint_sequential(list(self), 2, x, use_reentrant=False)

    torch.manual_seed(0)
    layers = [nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)]
    graph = prunus.trace(Segments(*layers), X)
    assert [axis.size for axis in graph.axes.values()] == [12, 10]
    prunus.shrink(Segments(*layers), graph, random_keep(graph))


@pytest.mark.filterwarnings("ignore")  # the library's own
@REENTRANT
def test_transformers_that_switch_it_on_themselves(reentrant):
    """They set hooks that let the embeddings have gradients, and hold the handles of these hooks."""
    torchvision_models()  # transformers imports it
    transformers = pytest.importorskip("transformers", reason="the model is from transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=16, num_hidden_layers=2, **sizes)
    torch.manual_seed(0)
    model, ids = transformers.LlamaForCausalLM(config), torch.arange(12).view(2, 6)
    graph = prunus.trace(model, ids)
    keep = random_keep(graph)
    plain, how = prunus.shrink(model, graph, keep), {"use_reentrant": reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    again = prunus.trace(model.train(), ids)
    assert {n: a.size for n, a in again.axes.items()} == {n: a.size for n, a in graph.axes.items()}
    small = prunus.shrink(model, again, keep)
    assert small.is_gradient_checkpointing
    plain.train()(input_ids=ids, labels=ids).loss.backward()
    late = prunus.shrink(plain, prunus.trace(plain, ids), {})
    late.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    for each in (small, late):
        each.train()(input_ids=ids, labels=ids).loss.backward()
        for got, want in zip(each.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(got.grad, want.grad)
    if small._require_grads_hooks:
        small.disable_input_require_grads()
        assert not small.get_input_embeddings()._forward_hooks
        assert model.get_input_embeddings()._forward_hooks  # those of the original are still there
