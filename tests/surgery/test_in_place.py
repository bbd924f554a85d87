"""A model that is shrunk in place is the shrunk model, and whatever holds it or its optimiser goes on."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

import prunus
from prunus.errors import PruningError, UserError
from prunus.sparse import masks
from tests.lib import nets

X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 6, 3, padding=1)),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
        nn.Tanh(),
        nn.Linear(4, 2),
    )


def train(model, optimizer, scheduler, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        scheduler.step()


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_it_does_with_a_new_model_and_a_carried_optimiser(name):
    model = network().train()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    train(model, optimizer, scheduler, 3)
    graph = prunus.trace(model, X)
    keep = nets.random_keep(graph)
    small = prunus.shrink(model, graph, keep)
    carried, _ = prunus.carry_over(graph, keep, model, small, optimizer=optimizer)
    again = torch.optim.lr_scheduler.StepLR(carried, 2, gamma=0.5)
    again.load_state_dict(scheduler.state_dict())
    held = [*model.modules(), *model.parameters()]
    prunus.shrink_in_place(model, graph, keep, optimizer=optimizer)
    assert all(a is b for a, b in zip(held, [*model.modules(), *model.parameters()], strict=True))
    for one, its_optimizer, its_scheduler in ((small, carried, again), (model, optimizer, scheduler)):
        train(one, its_optimizer, its_scheduler, 3)
    assert optimizer.param_groups[0]["lr"] == carried.param_groups[0]["lr"]
    assert model.state_dict().keys() == small.state_dict().keys()
    for key, tensor in small.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert (model[3].out_channels, model[7].in_features) == (small[3].out_channels, small[7].in_features)


@pytest.mark.parametrize("name", nets.NETS)
def test_any_network_is_what_shrink_makes_of_it(name):
    model, x = nets.build(name)
    graph = prunus.trace(model, x)
    keep = nets.random_keep(graph)
    small = prunus.shrink(model, graph, keep)
    prunus.shrink_in_place(model, graph, keep)
    again, other = prunus.trace(model, x), prunus.trace(small, x)
    assert {n: a.size for n, a in again.axes.items()} == {n: a.size for n, a in other.axes.items()}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))
    prunus.shrink(model, again, nets.random_keep(again))  # and it can be cut and proved again


def test_gradients_that_wait_for_the_next_step_are_cut():
    model = network()
    model(X).square().mean().backward()
    gradient = model[3].weight.grad.clone()
    keep = {"3": [1, 2, 6]}
    prunus.shrink_in_place(model, prunus.trace(model, X), keep)
    assert torch.equal(model[3].weight.grad, gradient[[1, 2, 6]])
    model(X).square().mean().backward()  # more is added to it


def test_an_error_changes_nothing(monkeypatch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.state[model[3].weight]["rows"] = torch.zeros(3)
    graph = prunus.trace(model, X)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"the optimiser's rows of 3.weight has shape"):
        prunus.shrink_in_place(model, graph, {"3": [1, 2, 6]}, optimizer=optimizer)

    def refuse(*given):
        raise PruningError("not equal")

    monkeypatch.setattr("prunus.surgery.apply.prove", refuse)
    with pytest.raises(PruningError):
        prunus.shrink_in_place(model, graph, {"3": [1, 2, 6]})
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())
    assert model[3].out_channels == 8


def test_a_model_whose_small_one_has_other_parameters_is_refused():
    model = network()
    graph = prunus.trace(model, X)
    masks.hold(model, graph, {"3.weight": torch.ones_like(model[3].weight, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"other parts \(3\.parametrizations"):
        prunus.shrink_in_place(model, prunus.trace(model, X), {"7": [1, 2]})


def test_a_model_in_several_processes_is_refused(tmp_path):
    file = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(network())
        with pytest.raises(UserError, match=r"cannot be shrunk in place: its buckets"):
            prunus.shrink_in_place(wrapped, prunus.trace(wrapped, X), {"3": [1]})
    finally:
        torch.distributed.destroy_process_group()


def test_units_of_a_keep_in_any_order_are_cut_alike_from_weights_and_gradients():
    model = network()
    graph = prunus.trace(model, X)
    model(X).square().mean().backward()
    wanted = model[3].weight.grad[[0, 2, 5]].clone()
    (axis,) = [
        name for name in graph.axes if any(m.tensor == "3.weight" and m.dim == 0 for m in graph.members(name))
    ]
    prunus.shrink_in_place(model, graph, {axis: [5, 0, 2]})
    assert torch.equal(model[3].weight.grad, wanted)
