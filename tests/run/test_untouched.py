"""What a user gives stays as it was: weights, gradients, modes, layouts, hooks, of the model and of the task."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus import zoo
from prunus.export import export_model
from prunus.files import write_tensors
from prunus.run import Settings, preview, prune
from prunus.testing.networks import NETWORKS, tiny_task
from tests.lib.own_tasks import regression

TINY = {"epochs": 0.25, "base_epochs": 0.25}


def state(model: nn.Module) -> list:
    """All of a model that a run might change."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [(name, tensor.clone(), tensor.stride(), tensor.device, tensor.dtype) for name, tensor in tensors],
        [
            (name, p.requires_grad, None if p.grad is None else p.grad.clone())
            for name, p in model.named_parameters()
        ],
        [
            (name, type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in model.named_modules()
        ],
        [sorted(vars(module)) for module in model.modules()],
    ]


def assert_same(before, after):
    assert str(before) == str(after)  # names, shapes, modes; values in short
    for one, other in zip(before[0], after[0], strict=True):
        assert torch.equal(one[1], other[1]), one[0]
    for one, other in zip(before[1], after[1], strict=True):
        assert (one[2] is None) == (other[2] is None) and (one[2] is None or torch.equal(one[2], other[2])), (
            one[0]
        )


def peculiar(model: nn.Module) -> nn.Module:
    """The model in training mode but for one module, channels-last, with a frozen parameter and a gradient."""
    model.train().to(memory_format=torch.channels_last)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm))
    norm.eval()
    first, *_, last = model.parameters()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)
    return model


@pytest.mark.parametrize("method", ["taylor", "dhp", "lookahead"])
def test_what_was_given_is_left_as_it_was(tmp_path, method):
    """Also by a file of weights, which are loaded into the run's own copy."""
    task = tiny_task("residual")
    model, other = peculiar(task.model), tiny_task("residual", seed=1).model
    write_tensors(tmp_path / "other.safetensors", other.state_dict())
    before, fields = state(model), copy.copy(vars(task))
    options = ("epochs=1",) if method == "dhp" else ()
    settings = Settings(method=method, options=options, weights=str(tmp_path / "other.safetensors"), **TINY)
    result = prune(task=task, out=tmp_path / "run", settings=settings)
    assert_same(before, state(model))
    assert vars(task) == fields
    assert result.model is not model
    preview(task=task, settings=Settings(weights=settings.weights))
    assert_same(before, state(model))
    again = prune(task=task, out=tmp_path / "run", settings=settings, resume=True)  # from the same start
    assert again.values["after"]["accuracy"] == result.values["after"]["accuracy"]


def test_weights_are_what_is_pruned(tmp_path, digits):
    """The given module's own weights play no part then."""
    torch.manual_seed(0)
    model, other = zoo.build("digits_resnet"), zoo.build("digits_resnet")
    write_tensors(tmp_path / "other.safetensors", other.state_dict())
    before = state(model)
    settings = Settings(method="magnitude", weights=str(tmp_path / "other.safetensors"), epochs=0)
    _, found = preview(model, data=digits, settings=settings)
    graph, wanted = preview(other, data=digits, settings=Settings(method="magnitude", epochs=0))
    assert found.keep == wanted.keep
    assert found.keep != preview(model, data=digits, settings=Settings(method="magnitude"))[1].keep
    assert graph is not None
    assert_same(before, state(model))


def test_a_task_of_ones_own_is_left_as_it_was(tmp_path):
    task = regression()
    task.model.train()
    before, fields = state(task.model), copy.copy(vars(task))
    prune(task=task, out=tmp_path / "run", settings=Settings(method="magnitude", **TINY))
    assert_same(before, state(task.model))
    assert vars(task) == fields


@pytest.mark.parametrize("name", NETWORKS)
def test_looking_at_a_model_changes_nothing(name):
    task = tiny_task(name)
    model = peculiar(task.model)
    before = state(model)
    graph = task.graph
    prunus.shrink(
        model, graph, prunus.select(graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=0.5))
    )
    task.evaluate(model, task.data.val)
    prunus.graph.part(model, "head", task.example)
    assert_same(before, state(model))


def test_an_export_leaves_a_model_in_its_modes(tmp_path):
    task = tiny_task("concatenating")
    model = task.model.train()
    model.norm.eval()
    before = state(model)
    export_model(tmp_path, model, task.example)
    assert_same(before, state(model))
