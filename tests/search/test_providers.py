"""Weights for all networks of a search: cut, shared, generated; the same in training, evaluation and the result."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunus import surgery, zoo
from prunus.data import load_data
from prunus.errors import UserError
from prunus.graph import trace
from prunus.methods.metapruning import Config, prune, pruning_net
from prunus.methods.metapruning.pruning_net import PruningNet
from prunus.recover import renew_norms
from prunus.refit import Moments
from prunus.search import (
    Builder,
    ClosedForm,
    Feasible,
    Inherit,
    Space,
    StepCounter,
    Supernet,
    SupernetTask,
    calibration_set,
    reinitialise,
    scatter,
    split_training,
    tensors_hash,
)
from prunus.selection import Budget, cost
from prunus.surgery import effective_tensors
from prunus.tasks import Classification
from prunus.train import Recipe, fit, loop
from tests.lib.metapruning import EXAMPLE, HALF, SMALL, begun, fresh, journal, lines
from tests.lib.models import torchvision_models
from tests.lib.providers import FORMS, network, some_widths, supernet
from tests.lib.two_processes import ROOT, SCRIPT, assert_trains_as_one, launched


# ------------------------------------------------------------------------------------ closed form
def test_weights_in_closed_form_are_those_that_the_moments_give():
    model, example = network("resnet20")
    space, images = Space(trace(model, example)), torch.randn(32, *example.shape[1:]).to(example)
    provider, whole = ClosedForm(model, space, images.split(16)), dict(space.graph.widths())
    assert same(provider.network(whole), Inherit(model, space).network(whole))
    widths = space.widths(Feasible(space, HALF).uniform())
    weights = Moments(model, space.graph, images.split(16)).weights(provider.keep(widths))
    expected = surgery.shrink(surgery.clone(model, weights), space.graph, provider.keep(widths))
    assert same(provider.network(widths), expected)
    assert not same(provider.network(widths), Inherit(model, space).network(widths))


def same(model, other):
    return tensors_hash(effective_tensors(model)) == tensors_hash(effective_tensors(other))


# ------------------------------------------------------------------------------------ the PruningNet
@pytest.mark.parametrize("form", FORMS[1:])
def test_whole_networks_have_the_shapes_of_the_dense_one(form):
    model, example = network("mobilenet_v2")
    graph = trace(model, example)
    space = Space(graph)
    maker = PruningNet(graph, space.names, form=form, hidden=4).double()
    whole = maker(graph.widths(), effective_tensors(model))
    assert {name: weight.shape for name, weight in whole.items()} == {n: graph.shapes[n] for n in whole}
    assert "linear.weight" not in whole and "blocks.3.layers.0.weight" in whole and "stem.0.weight" in whole
    if form != "paper":  # they begin as the network that they are given
        net = Supernet(model, Feasible(space, HALF), maker=maker)
        assert torch.equal(net.output(graph.widths(), example), model(example))
        for widths in (some_widths(net), some_widths(net, 1)):
            shared = Supernet(model, net.room).network(widths)
            assert torch.equal(net.network(widths)(example), shared(example))


def test_a_block_is_given_the_widths_of_its_own_weight_alone_always_in_one_order():
    found = []
    for _ in range(2):
        model, example = network("mobilenet_v2")
        graph = trace(model, example)
        found.append(dict(pruning_net.weights_to_make(graph, Space(graph).names, "paper")))
    assert found[0] == found[1] and list(found[0]) == list(found[1])
    near = found[0]
    assert near["stem.0.weight"] == ["stem.0"] and len(near["blocks.3.layers.0.weight"]) == 2
    assert len(near["blocks.3.layers.3.weight"]) == 1  # depthwise: one width


def test_the_paper_form_leaves_out_what_no_norm_follows():
    model, example = network("conv6")
    graph = trace(model, example)
    names = Space(graph).names
    with pytest.raises(UserError, match="form=residual"):
        PruningNet(graph, names, form="paper")
    assert PruningNet(graph, names, form="residual", hidden=2).context


def test_a_pruning_net_that_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    graph = trace(*network("mobilenet_v2"))
    names = Space(graph).names
    monkeypatch.setattr(pruning_net, "PruningBlock", None)  # making one would fail
    with pytest.raises(UserError, match=r"0\.87 GB .*there are 0\.1 GB\. form=factored takes 0\.0099 GB"):
        PruningNet(graph, names, memory_bytes=1e8)
    monkeypatch.setattr(pruning_net, "available_bytes", lambda: 1e8)
    with pytest.raises(UserError, match=r"0\.87 GB"):  # a run asks this before it trains anything
        Config(weights="hypernet").check(graph, HALF)


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_size_that_is_checked_is_the_size_it_has(form):
    graph = trace(*network("digits"))
    maker = PruningNet(graph, Space(graph).names, form=form, hidden=8)
    numbers = sum(p.numel() for p in maker.parameters())
    assert pruning_net.size_bytes(graph, maker.context, form, 8) == 12 * numbers


# ------------------------------------------------------------------------------- training a supernet
def ready_to_train(task, form="shared", sampling="sandwich"):
    """A supernet of the task's model, and the task it is trained on."""
    graph = trace(task.model, EXAMPLE)
    space = Space(graph)
    torch.manual_seed(1)
    maker = None if form == "shared" else PruningNet(graph, space.names, form=form)
    net = Supernet(task.model, Feasible(space, HALF), maker=maker, sampling=sampling)
    parts = split_training(task.data.train, 150, 0)
    ready = Builder(net.network, calibration_set(parts.train, 256, 0))
    return net, SupernetTask(task, parts.train, ready), parts


RECIPE = Recipe(epochs=2, batch_size=300, lr=0.05, precision="no")


class Stopping(StepCounter):
    stop_at = None

    def after_step(self, at, step, lr):
        if step == self.stop_at:
            raise KeyboardInterrupt
        super().after_step(at, step, lr)


@pytest.mark.parametrize("form", ["shared", "paper"])
def test_killed_anywhere_a_training_goes_on_bit_equal(form, digits, tmp_path, monkeypatch):
    def trained(folder, stop_at=None):
        net, task, _ = ready_to_train(fresh(digits), form)
        along = Stopping(net)
        along.stop_at = stop_at
        history = fit(net, task, RECIPE, folder=folder, along=along)
        return net, [{key: row[key] for key in ("loss", "accuracy")} for row in history]

    straight, rows = trained(None)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    for stop_at in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, stop_at)
    resumed, again = trained(tmp_path)
    assert again == rows and resumed.step == straight.step > 5
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_two_processes_train_the_supernet_that_one_does(tmp_path):
    assert_trains_as_one(training_without_norms, tmp_path)


def training_without_norms(folder):
    """One or two processes, each of which would normalise its own half of a batch and augment its own images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    task = Classification(model, load_data("tests.lib.two_processes:image_items"))
    net, task, parts = ready_to_train(task, "residual")
    task.data = replace(task.data, train=parts.train.take(np.arange(120)))  # batches of an even size
    fit(net, task, replace(RECIPE, batch_size=40), folder=folder, along=StepCounter(net))


def searched_with(weights, folder):
    """A short deterministic search with a supernet, whose winner keeps the weights it was evaluated with."""
    config = replace(SMALL, weights=weights, epochs=1, generations=2, winner="provider")
    run = begun(folder)
    found = prune(fresh(load_data("digits")), HALF, config, run)
    note = json.dumps([found.keep, tensors_hash(found.weights)])
    (run.path / f"found{run.processes.process_index}").write_text(note)


def searched_in_ranks(folder):
    """One of two processes: with a supernet that one process has trained, and with one that both train."""
    for weights in ("shared", "hypernet"):
        for each in ("given", "own"):
            searched_with(weights, Path(folder) / f"{weights}_{each}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_find_what_one_does_and_train_one_supernet(tmp_path):
    """Trained in two processes, which norm half a batch each, a supernet has other weights, but both have the same."""
    for weights in ("shared", "hypernet"):
        searched_with(weights, tmp_path / f"{weights}_alone")
        given = shutil.copytree(tmp_path / f"{weights}_alone", tmp_path / f"{weights}_given")
        (given / "found0").unlink(), journal(given).unlink()
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(root=ROOT, folder=str(tmp_path), module=__name__, name="searched_in_ranks")
    )
    launched([str(script)])
    for weights in ("shared", "hypernet"):
        alone, given, own = (tmp_path / f"{weights}_{each}" for each in ("alone", "given", "own"))
        assert journal(given).read_bytes() == journal(alone).read_bytes()
        assert (given / "found0").read_text() == (given / "found1").read_text()
        assert (given / "found0").read_text() == (alone / "found0").read_text()
        assert (own / "found0").read_text() == (own / "found1").read_text()
        networks = [line["widths"] for line in lines(own)]
        assert networks and all(networks.count(each) == 1 for each in networks)


def test_networks_of_a_step_depend_on_seed_and_step_alone(digits):
    net, _, _ = ready_to_train(fresh(digits))
    space, room = net.room.space, net.room
    for step in (0, 7):
        first, least, *others = net.sample(step)
        assert first == space.widths(space.whole) and least == space.widths(0 * space.whole)
        assert len(others) == 2 and net.sample(step) == [first, least, *others]
    assert net.sample(0)[2:] != net.sample(1)[2:]
    net.sampling = "uniform"
    assert len(net.sample(0)) == 1 and net.sample(0) != net.sample(1)
    net.sampling = "budget"
    genes = np.stack([space.genes(net.sample(step)[0]) for step in range(20)])
    costs = room.costs(genes)
    assert (
        (costs <= room.limit).all()
        and (costs >= 0.9 * room.limit).all()
        and len(np.unique(genes, axis=0)) > 10
    )


def test_the_smaller_networks_learn_the_answers_of_the_largest(digits):
    task = SupernetTask(fresh(digits), digits.train, None)
    y, recipe = torch.tensor([1, 2]), Recipe(epochs=1, label_smoothing=0.1)
    answers = [torch.randn(2, 10, requires_grad=True) for _ in range(3)]
    task.training_loss(answers, y, recipe).backward()
    inner = fresh(digits)
    alone = answers[0].detach().requires_grad_()
    (inner.training_loss(alone, y, recipe) / 3).backward()
    assert torch.allclose(answers[0].grad, alone.grad)
    other = answers[1].detach().requires_grad_()
    kl = F.kl_div(other.log_softmax(1), answers[0].detach().softmax(1), reduction="batchmean")
    (kl / 3).backward()
    assert torch.allclose(answers[1].grad, other.grad, atol=1e-7)
    assert torch.equal(task.loss(answers[:1], y), inner.loss(answers[0], y))


@pytest.mark.parametrize(
    ("form", "sampling", "epochs"),
    [("shared", "sandwich", 3), ("paper", "uniform", 12), ("factored", "budget", 4)],
)
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_networks_of_random_widths_get_better_and_need_their_norms_renewed(form, sampling, epochs, digits):
    net, task, parts = ready_to_train(fresh(digits), form, sampling)

    def mean_accuracy(renewed):
        found = []
        for seed in range(4):
            small = net.network(some_widths(net, seed))
            if renewed:
                renew_norms(small, calibration_set(parts.train, 256, 0).between(0, 256))
            found.append(task.task.evaluate(small, parts.search)["accuracy"])
        return np.mean(found)

    before = mean_accuracy(True)
    rows = fit(
        net,
        task,
        Recipe(epochs=12, batch_size=64, lr=0.1, warmup_epochs=1, precision="no"),
        along=StepCounter(net),
    )
    after = mean_accuracy(True)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"] and after > before + 0.15
    assert after > mean_accuracy(False) + 0.15


# --------------------------------------------------------------------------------- handing on
def test_what_is_put_back_is_what_is_cut_again():
    for name in ("digits", "concat", "norms"):
        torch.manual_seed(0)
        model, example = network(name)
        net = supernet(model, example, order=True)
        widths = some_widths(net)
        small = net.network(widths)
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.mul_(1.5)
        keep = net.keep(widths)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        again = surgery.shrink(scatter(model, net.graph, keep, small), net.graph, keep)
        for a, b in zip(effective_tensors(again).values(), effective_tensors(small).values(), strict=True):
            assert torch.allclose(a, b, rtol=1e-9)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_weights_are_drawn_for_the_widths_there_are():
    model, example = network("vgg11_bn")
    graph = trace(model, example)
    keep = {name: list(range(axis.size // 4)) for name, axis in graph.axes.items()}
    small = surgery.shrink(model, graph, keep)
    before = {name: p.clone() for name, p in small.named_parameters()}
    first, again = (reinitialise(small, example, list(graph.axes), seed=4).state_dict() for _ in range(2))
    for name, parameter in small.named_parameters():
        if parameter.dim() == 4:
            reads = parameter[0].numel()
            assert parameter.var().item() * reads == pytest.approx(1, rel=0.3)
            assert not torch.allclose(parameter, before[name])
        assert torch.equal(first[name], again[name])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("weights", ["shared", "hypernet"])
def test_a_search_with_a_supernet(weights, digits, tmp_path):
    config = replace(SMALL, weights=weights, epochs=1, generations=2)
    task = fresh(digits)
    before = {n: t.clone() for n, t in task.model.state_dict().items()}
    run = begun(tmp_path)
    found = prune(task, HALF, config, run)
    assert all(torch.equal(t, before[n]) for n, t in task.model.state_dict().items())
    graph = trace(task.model, EXAMPLE)
    assert cost.macs(graph, found.keep) <= HALF.limit(cost.macs(graph))
    text = journal(tmp_path).read_bytes()
    again = prune(fresh(digits), HALF, config, begun(tmp_path))  # nothing is done twice
    assert journal(tmp_path).read_bytes() == text and again.keep == found.keep
    assert all(torch.equal(t, again.weights[n]) for n, t in found.weights.items())
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [each["stage"] for each in events if each["event"] == "epoch"][:1] == ["prune"]
    small = fresh(digits).model
    small.load_state_dict(found.weights)
    accuracy = task.evaluate(surgery.shrink(small, graph, found.keep), digits.val)["accuracy"]
    winner = next(each for each in events if each["event"] == "searched")["winner"]
    if weights == "shared":  # handed on as it was tried
        assert accuracy > 0.5 * winner["score"]
    assert len(found.charts) == 5


def test_the_papers_way(digits, tmp_path):
    config = replace(SMALL, weights="hypernet", strict_paper=True, epochs=1, generations=2)
    found = prune(fresh(digits), HALF, config, begun(tmp_path))
    text = (tmp_path / "prune" / "search.jsonl").read_text().splitlines()[1:]
    assert {json.loads(line)["on"] for line in text} == {"search"}
    assert "uniform" not in {json.loads(line)["origin"] for line in text}
    assert all(units == list(range(len(units))) for units in found.keep.values())


@pytest.mark.parametrize(
    "options",
    [{"strict_paper": True}, {"weights": "shared", "start": "scratch", "order": "taylor"}, {"form": "big"}],
)
def test_options_that_do_not_go_together_are_refused(options):
    with pytest.raises(UserError):
        Config(**options).resolved()


# ------------------------------------------------------------------- transitions, and what networks cost
def test_stages_of_equal_widths_get_no_shortcut_by_it():
    model = zoo.build("mobilenet_v2").eval()
    x = torch.randn(2, 3, 32, 32)
    graph = trace(model, x[:1])
    space = Space(graph, ratios=None, floor=1)
    stages = [name for name in graph.axes if len({m.tensor for m in graph.members(name)}) > 2]
    widths = {name: min(16, graph.axes[name].size) for name in stages}
    widths = json.loads(json.dumps(widths))  # by name, as a file has them
    small = surgery.shrink(model, graph, space.keep(widths))
    adds = [block.carries for block in small.blocks]
    assert adds == [block.carries for block in model.blocks] and not all(adds)
    assert {block.layers[-2].weight.shape[0] for block in small.blocks} == {16}
    assert torch.allclose(small(x), Inherit(model, space).network(widths)(x), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1", "mobilenet_v2", "densenet40"])
def test_the_closed_form_is_what_the_small_network_does(name):
    model = zoo.build(name).eval()
    x = torch.randn(1, 3, 32, 32)
    graph = trace(model, x)
    provider = Inherit(model, Space(graph))
    for seed in range(3):
        genes = np.random.default_rng(seed).integers(0, provider.space.counts)
        widths = provider.space.widths(genes)
        small = provider.network(widths)
        with FlopCounterMode(display=False) as counter:
            small(x)
        predicted = Feasible(provider.space, Budget(macs=1.0)).costs(genes[None]).item()
        assert predicted == cost.macs(graph, provider.keep(widths)) == counter.get_total_flops() / 2
        assert cost.params(graph, provider.keep(widths)) == sum(p.numel() for p in small.parameters())


def first_of(graph, widths):
    return {name: range(width) for name, width in widths.items()}


def counted_as_theirs(model, graph, widths):
    """Millions, as the paper's code counts: with the outputs of norms, the pooling's window, and the last bias."""
    small = surgery.shrink(model, graph, first_of(graph, widths), verify="off").eval()
    normed = []
    for norm in small.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_hook(lambda module, args, output: normed.append(output.numel()))
    with torch.no_grad():
        small(torch.zeros(1, 3, 224, 224))
    pooled = 7 * 7 * small.linear.in_features
    macs = cost.macs(graph, first_of(graph, widths))
    return (macs + sum(normed) + pooled + small.linear.out_features) / 1e6


def test_mobilenet_v1_with_the_papers_widths_costs_what_its_code_says():
    """The vector for 316 M, read in two ways by its code."""
    model = zoo.build("mobilenet_v1_224", 1000)
    graph = trace(model, torch.zeros(1, 3, 224, 224))
    hundredths = [97, 94, 64, 40, 79, 79, 76, 76, 49, 61, 94, 61, 85]
    for order, expected in ((hundredths[1:] + hundredths[:1], 316.8), (hundredths, 315.6)):
        widths = {name: graph.axes[name].size * n // 100 for name, n in zip(graph.axes, order, strict=False)}
        assert round(counted_as_theirs(model, graph, widths), 1) == expected


RESNETS = {  # MACs: hundredths of the stem, of the stages, of the inner widths
    1027.6e6: (
        67,
        (37, 55, 49, 100),
        ((40, 37, 40), (28, 37, 49, 43), (46, 31, 64, 31, 49, 46), (40, 67, 64)),
    ),
    1989.9e6: (
        79,
        (61, 58, 61, 100),
        ((58, 58, 64), (70, 64, 85, 43), (97, 76, 64, 49, 91, 61), (79, 79, 70)),
    ),
}


@pytest.mark.parametrize("expected", RESNETS)
def test_resnet50_with_the_papers_widths_costs_what_it_says(expected):
    model = torchvision_models().resnet50()
    graph = trace(model, torch.zeros(1, 3, 224, 224))
    stem, stages, inner = RESNETS[expected]
    widths = {"conv1": 64 * stem // 100}
    for stage, (part, parts) in enumerate(zip(stages, inner, strict=True), start=1):
        base = 64 * 2 ** (stage - 1)
        widths[f"layer{stage}.0.conv3"] = 4 * base * part // 100
        for block, n in enumerate(parts):
            widths |= {f"layer{stage}.{block}.conv{conv}": base * n // 100 for conv in (1, 2)}
    macs = cost.macs(graph, first_of(graph, widths))
    assert round(macs / 1e6, 1) == pytest.approx(expected / 1e6)


class WideMobileNetV2(nn.Module):
    """The network that the paper searches in for MobileNetV2: 1.4 times as wide, each block's inside six times its
    input's width, the first block's as wide as its input."""

    STAGES = (44, 22, *[33] * 2, *[44] * 3, *[88] * 4, *[132] * 3, *[224] * 3, 448)
    HALVED = (33, 44, 88, 224)  # the stages that begin with half the side

    def __init__(self):
        super().__init__()

        def normed(*conv, **options):
            return nn.Sequential(nn.Conv2d(*conv, bias=False, **options), nn.BatchNorm2d(conv[1]))

        self.stem, self.blocks, self.head = normed(3, 44, 3, 2, 1), nn.ModuleList(), normed(448, 1280, 1)
        self.linear = nn.Linear(1280, 1000)
        for number, (a, b) in enumerate(pairwise(self.STAGES)):
            inner, stride = 6 * a if number else a, 2 if a != b and b in self.HALVED else 1
            depthwise = normed(inner, inner, 3, stride, 1, groups=inner)
            self.blocks.append(nn.Sequential(normed(a, inner, 1), depthwise, normed(inner, b, 1)))

    def forward(self, x):
        x = self.stem(x)
        for block, (a, b) in zip(self.blocks, pairwise(self.STAGES), strict=True):
            y = F.relu6(block[1](F.relu6(block[0](x))))
            x = block[2](y) + x if a == b else block[2](y)
        return self.linear(F.relu6(self.head(x)).mean((2, 3)))


def test_mobilenet_v2_with_the_papers_widths_costs_what_its_code_says():
    """The vector in the paper's code, as indices into the 31 ratios: of the stages, and of the blocks' insides."""
    stages = (14, 12, 11, 11, 8, 8, 8, 7, 7, 7, 7, 8, 8, 8, 14, 14, 14, 8)
    inner = (6, 5, 2, 15, 7, 17, 14, 5, 11, 12, 12, 11, 6, 16, 14, 13, 14)
    model = WideMobileNetV2()
    graph = trace(model, torch.zeros(1, 3, 224, 224))
    outputs = ["stem.0", *(f"blocks.{number}.2.0" for number in range(17))]
    ids = dict(zip(outputs, stages, strict=True)) | {
        f"blocks.{number}.0.0": n for number, n in enumerate(inner)
    }
    widths = {
        name: axis.size * (10 + 3 * ids[name]) // 100 for name, axis in graph.axes.items() if name in ids
    }
    assert len(widths) == 8 + 17  # blocks of a stage are added, so they share one
    assert round(cost.macs(graph, first_of(graph, widths)) / 1e6, 1) == 104.9
    assert round(counted_as_theirs(model, graph, widths), 1) == 108.4
