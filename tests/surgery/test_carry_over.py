"""Training goes on after a shrink: optimiser state and averaged weights are cut with the same indices."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.swa_utils import AveragedModel

import prunus
from prunus.errors import PrunusError, UserError
from tests.lib import nets

X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
KEEP = {"0": [0, 2, 5], "3": [1, 2, 3, 6], "8": [2]}


def network():
    """No offsets before norms: their gradients are zero up to rounding, which Adam would blow up."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
        nn.Tanh(),
        nn.Linear(4, 2),
    )


def loss(model):
    return model(X).square().mean()


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "Adam": lambda parameters: Adam(parameters, lr=0.01, amsgrad=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.05),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "Adadelta": lambda parameters: torch.optim.Adadelta(parameters, lr=0.5),
    "Rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.01),
}


def kept(graph, name, tensor):
    """The part of a full-size tensor that stays, by the members of the axes."""
    for axis, units in KEEP.items():
        for member in graph.members(axis):
            if member.tensor == name:
                where = member.index[units].flatten().sort().values
                tensor = tensor.index_select(member.dim, where)
    return tensor


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_after_is_the_step_of_the_masked_model(name):
    """Masked: the same state, zeros in place of the units that went; what stays must move alike."""
    model = network().train()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    carried, _ = prunus.carry_over(graph, KEEP, model, small, optimizer=optimizer)
    masked = prunus.mask(model, graph, KEEP)
    full = OPTIMIZERS[name](masked.parameters())
    full.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(masked, full, 1)
    train(small, carried, 1)
    parameters = dict(small.named_parameters())
    for parameter, tensor in masked.named_parameters():
        torch.testing.assert_close(parameters[parameter], kept(graph, parameter, tensor), msg=parameter)
    for buffer, tensor in masked.named_buffers():
        if tensor.dim():
            torch.testing.assert_close(small.get_buffer(buffer), kept(graph, buffer, tensor), msg=buffer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_cut_and_the_given_optimiser_untouched(name):
    model = network().train()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    carried, ema = prunus.carry_over(graph, KEEP, model, small, optimizer=optimizer)
    assert ema is None
    assert type(carried) is type(optimizer)
    full = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    for parameter, tensor in small.named_parameters():
        state = carried.state[tensor]
        assert state.keys() == full[parameter].keys()
        for key, value in full[parameter].items():
            if isinstance(value, torch.Tensor) and value.dim():
                assert torch.equal(state[key], kept(graph, parameter, value))
                assert state[key].data_ptr() != value.data_ptr()
            else:
                assert state[key] == value
    for ours, theirs in zip(carried.param_groups, before["param_groups"], strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }
    train(small, carried, 1)
    after = optimizer.state_dict()["state"]
    assert all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(after[i][key]))
        for i, state in before["state"].items()
        for key, value in state.items()
    )


def test_an_optimiser_that_has_not_stepped_yet():
    model = network()
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    fresh = Adam(model.parameters(), lr=0.01)
    carried, _ = prunus.carry_over(graph, KEEP, model, small, optimizer=fresh)
    twin = copy.deepcopy(small)
    train(small, carried, 2)
    train(twin, Adam(twin.parameters(), lr=0.01), 2)
    for ours, theirs in zip(small.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_groups_keep_their_settings_and_frozen_parameters_stay_out():
    model = network()
    model[0].requires_grad_(False)
    groups = [
        {"params": model[3].parameters(), "lr": 0.1, "label": "body"},
        {"params": [*model[8].parameters(), *model[10].parameters()], "weight_decay": 0.5},
    ]
    optimizer = SGD(groups, lr=0.2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, 1)
    scheduler.step()
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    carried, _ = prunus.carry_over(graph, KEEP, model, small, optimizer=optimizer)
    first, second = carried.param_groups
    assert (first["lr"], first["label"], first["weight_decay"]) == (pytest.approx(0.01), "body", 0)
    assert (second["lr"], second["weight_decay"]) == (pytest.approx(0.02), 0.5)
    assert [id(p) for p in second["params"]] == [
        id(p) for p in [*small[8].parameters(), *small[10].parameters()]
    ]
    assert not any(parameter.requires_grad for parameter in small[0].parameters())
    train(small, carried, 1)


def test_an_averaged_copy_is_shrunk_too():
    model = network()
    ema = copy.deepcopy(model).requires_grad_(False)
    train(model, SGD(model.parameters(), lr=0.1), 2)
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    optimizer, small_ema = prunus.carry_over(graph, KEEP, model, small, ema=ema)
    assert optimizer is None
    expected = prunus.shrink(ema, graph, KEEP)
    assert all(torch.equal(a, b) for a, b in zip(small_ema.parameters(), expected.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in small_ema.parameters())
    assert torch.equal(small_ema.eval()(X), expected.eval()(X))


def test_a_network_with_heads_and_tied_weights():
    model, ids = nets.build("decoder")
    optimizer = Adam(model.parameters(), lr=0.01)
    model(ids).square().mean().backward()
    optimizer.step()
    graph = prunus.trace(model, ids)
    keep = nets.random_keep(graph)
    small = prunus.shrink(model, graph, keep)
    carried, _ = prunus.carry_over(graph, keep, model, small, optimizer=optimizer)
    for parameter in small.parameters():
        assert carried.state[parameter]["exp_avg"].shape == parameter.shape
    small(ids).square().mean().backward()
    carried.step()


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.Adafactor(p, lr=0.01), lambda p: torch.optim.LBFGS(p, lr=0.1)],
    ids=["Adafactor", "LBFGS"],
)
def test_state_of_other_shapes_is_cut_or_refused(make):
    model = network()
    optimizer = make(model.parameters())

    def closure():
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(closure)
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    try:
        carried, _ = prunus.carry_over(graph, KEEP, model, small, optimizer=optimizer)
    except UserError:
        return
    loss(small).backward()
    carried.step(lambda: loss(small))


# ------------------------------------------------------------------ any optimiser, as it was made
class Sharp(SGD):
    """One whose constructor wants more, and which has attributes of its own."""

    def __init__(self, params, lr, rho):
        super().__init__(params, lr, momentum=0.9)
        self.rho, self.radius, self.count = rho, torch.tensor([0.5, 0.25]), {"steps": [3]}


class TwoSteps(torch.optim.Optimizer):
    """One that goes to a worse place first, and lets an inner optimiser, which shares its groups, step from there."""

    def __init__(self, params, rho):
        super().__init__(params, {"rho": rho})
        self.inner = SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["away"] = [parameter.grad.sign() * group["rho"]]
        self.inner.step()


def carried_over(optimizer, model, **more):
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    return small, prunus.carry_over(graph, KEEP, model, small, optimizer=optimizer, **more)[0], graph


def test_the_constructor_is_not_called_and_attributes_are_copied():
    model = network()
    optimizer = Sharp(model.parameters(), 0.1, rho=0.05)
    train(model, optimizer, 2)
    small, carried, _ = carried_over(optimizer, model)
    assert carried.rho == 0.05 and carried.count == {"steps": [3]} and carried.count is not optimizer.count
    assert torch.equal(carried.radius, optimizer.radius)
    assert carried.radius.data_ptr() != optimizer.radius.data_ptr()
    assert carried.defaults == optimizer.defaults
    train(small, carried, 1)


def test_an_optimiser_inside_another_keeps_sharing_its_groups():
    model = network()
    optimizer = TwoSteps(model.parameters(), rho=0.01)
    train(model, optimizer, 2)
    small, carried, graph = carried_over(optimizer, model)
    assert carried.param_groups is carried.inner.param_groups
    assert carried.inner is not optimizer.inner
    old, new = model[3].weight, small[3].weight
    expected = kept(graph, "3.weight", optimizer.inner.state[old]["momentum_buffer"])
    assert torch.equal(carried.inner.state[new]["momentum_buffer"], expected)
    assert torch.equal(
        carried.state[new]["away"][0], kept(graph, "3.weight", optimizer.state[old]["away"][0])
    )
    train(small, carried, 1)


def test_parameters_outside_the_model_stay_with_their_state():
    model, weight = network(), nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Adam([{"params": [*model.parameters(), weight]}, {"params": [], "lr": 0.5}], lr=0.01)

    def step(network, optimizer):
        optimizer.zero_grad()
        (loss(network) * weight.square().sum()).backward()
        optimizer.step()

    step(model, optimizer)
    small, carried, _ = carried_over(optimizer, model)
    assert carried.param_groups[0]["params"][-1] is weight
    before = optimizer.state[weight]["exp_avg"].clone()
    step(small, carried)
    assert torch.equal(optimizer.state[weight]["exp_avg"], before)
    assert not torch.equal(carried.state[weight]["exp_avg"], before)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"lr": torch.tensor(0.01)}])
def test_forms_of_one_optimiser_are_carried_over(options):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    train(model, optimizer, 2)
    small, carried, _ = carried_over(optimizer, model)
    before = [tensor.detach().clone() for tensor in small.parameters()]
    train(small, carried, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))
    assert next(iter(carried.state.values()))["step"] == 3


def test_a_scheduler_made_on_the_carried_optimiser_goes_on():
    model = network()
    optimizer = SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step()
    small, carried, _ = carried_over(optimizer, model)
    assert "step" not in vars(carried)  # the old scheduler counts the old one's steps there
    again = torch.optim.lr_scheduler.StepLR(carried, 2, gamma=0.1)
    again.load_state_dict(scheduler.state_dict())
    rates = []
    for one, network_, schedule in ((carried, small, again), (optimizer, model, scheduler)):
        train(network_, one, 1)
        schedule.step()
        rates.append(one.param_groups[0]["lr"])
    assert rates[0] == rates[1] == pytest.approx(0.01)


def test_a_gradient_scaler_goes_on_as_it_is():
    model = network()
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=4.0), SGD(model.parameters(), lr=0.1)

    def step(network, optimizer):
        optimizer.zero_grad()
        scaler.scale(loss(network)).backward()
        scaler.step(optimizer)
        scaler.update()

    step(model, optimizer)
    small, carried, _ = carried_over(optimizer, model)
    before = small[3].weight.detach().clone()
    step(small, carried)
    assert scaler.get_scale() == 4.0 and not torch.equal(small[3].weight, before)


def test_an_attribute_that_cannot_be_copied_is_named():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.guard = threading.Lock()
    with pytest.raises(UserError, match=r"SGD cannot be carried over: its attribute 'guard', a lock"):
        carried_over(optimizer, model)


def test_torchs_own_average_keeps_its_count_and_its_rule():
    model = network()
    average = AveragedModel(model, avg_fn=lambda mean, new, count: mean + (new - mean) / (count + 3))
    for _ in range(2):
        train(model, SGD(model.parameters(), lr=0.1), 1)
        average.update_parameters(model)
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    _, carried = prunus.carry_over(graph, KEEP, model, small, ema=average)
    assert isinstance(carried, AveragedModel)
    assert carried.n_averaged == 2
    assert torch.equal(carried.module[3].weight, kept(graph, "3.weight", average.module[3].weight))
    carried.update_parameters(small)
    assert carried.n_averaged == 3 and average.n_averaged == 2
    mean, new = kept(graph, "3.weight", average.module[3].weight), small[3].weight
    torch.testing.assert_close(carried.module[3].weight, mean + (new - mean) / 5)


def test_what_does_not_belong_together_is_refused():
    model, other = network(), network()
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, KEEP)
    with pytest.raises(UserError, match="not the traced model's"):
        prunus.carry_over(graph, KEEP, model, small, optimizer=SGD(other.parameters(), lr=0.1))
    with pytest.raises(PrunusError):
        prunus.carry_over(graph, KEEP, model, small, ema=nn.Linear(3, 2))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1)
    with pytest.raises(PrunusError):
        prunus.carry_over(graph, {"0": [1]}, model, small, optimizer=optimizer)
