"""Whole networks with what must hold when they are pruned, from the trace to the next step of training."""

import tempfile

import torch
from torch.utils._pytree import tree_leaves

import prunus
from prunus.inputs import call
from tests.lib.graphs import counted_macs


def answers(model, example):
    """The tensors that a model returns, with the same random numbers at every call."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return [leaf for leaf in tree_leaves(call(model, example)) if isinstance(leaf, torch.Tensor)]


def shapes(model, example):
    return [tensor.shape for tensor in answers(model, example)]


def units_of(graph):
    """The parameters of which units that they make, or their first dimension, may shrink."""
    return {
        member.tensor
        for axis in graph.axes
        for member in graph.members(axis)
        if member.dim == 0 or member.role == "produces"
    }


def check_case(model, example, must=(), *, budget=0.5, same_as_masked=True, exports=True):
    """Prune to a share of the multiply-adds by size of the weights; returns the graph, what was kept, the small model.

    must: parameters that have to lose units.
    same_as_masked: False where units are mixed or random numbers drawn, so that zeros are not the same as no units;
        the proof, which knows both, holds in any case.
    """
    graph = prunus.trace(model.eval(), example)
    for name in must:
        assert name in units_of(graph), graph.explain(name)
    keep = prunus.select(graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=budget))
    small = prunus.shrink(model, graph, keep)
    assert type(small) is type(model) and shapes(small, example) == shapes(model, example)
    assert counted_macs(small, example) <= (budget + 0.02) * counted_macs(model, example)
    if same_as_masked:
        torch.testing.assert_close(answers(small, example), answers(prunus.mask(model, graph, keep), example))
    check_loads(model, graph, keep, small, example)
    if exports:
        check_exports(small, example)
    check_trains(model, small, graph)
    return graph, keep, small


def check_loads(model, graph, keep, small, example):
    with tempfile.TemporaryDirectory() as folder:
        prunus.save(folder, small, keep, graph)
        loaded = prunus.load(folder, model).eval()
    torch.testing.assert_close(answers(loaded, example), answers(small, example), rtol=1e-6, atol=1e-7)


def check_exports(small, example):
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = (args,) if isinstance(args, torch.Tensor) else args
    program = torch.export.export(small, args, kwargs).module()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        got = [leaf for leaf in tree_leaves(program(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
    torch.testing.assert_close(got, answers(small, example), rtol=1e-4, atol=1e-4)


def check_trains(model, small, graph):
    """In training both return the same shapes, and a step changes the weights of the small model."""
    assert "train" in graph.modes
    example = graph.modes["train"]
    assert shapes(small.train(), example) == shapes(model.train(), example)
    before = [parameter.detach().clone() for parameter in small.parameters()]
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    found = [leaf for leaf in tree_leaves(call(small, example)) if isinstance(leaf, torch.Tensor)]
    sum(tensor.float().square().mean() for tensor in found if tensor.requires_grad).backward()
    optimizer.step()
    after = list(small.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    model.eval(), small.eval()


class Cases(dict):
    """name -> how to make a network and its example, the parameters that have to lose units, options of the check."""

    def add(self, *must, name=None, **options):
        """Register a function that makes a model and its example; see `check_case`."""

        def register(make):
            self[name or make.__name__] = (make, must, options)
            return make

        return register

    def check(self, name):
        torch.manual_seed(0)
        make, must, options = self[name]
        return check_case(*make(), must, **options)
