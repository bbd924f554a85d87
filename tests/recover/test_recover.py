"""Renewed norm statistics are exact; recovery brings a damaged model back, and resumes bit-equal."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from prunus import zoo
from prunus.recover import recover, renew_norms
from prunus.tasks import Classification
from prunus.train import fit, loop


def batches(sizes, seed=0):
    torch.manual_seed(seed)
    # means that drift from batch to batch, so that a mean of variances alone would be wrong
    return [(torch.randn(size, 3, 5, 5) * (1 + i) + 3 * i, None) for i, size in enumerate(sizes)]


def test_statistics_are_those_of_all_batches_together():
    norm = nn.BatchNorm2d(3, momentum=0.3)
    given = batches([7, 2, 31, 16])
    renew_norms(nn.Sequential(norm), given)
    whole = torch.cat([x for x, _ in given]).double().transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean.double(), whole.mean(1), rtol=1e-6)
    assert torch.allclose(norm.running_var.double(), whole.var(1), rtol=1e-6)


def test_statistics_do_not_depend_on_the_order_or_on_what_was_there():
    def renewed(given, fill):
        norm = nn.BatchNorm2d(3)
        norm.running_mean.fill_(fill), norm.running_var.fill_(fill)
        renew_norms(nn.Sequential(norm), given)
        return torch.stack([norm.running_mean, norm.running_var])

    given = batches([7, 2, 31])
    assert torch.allclose(renewed(given, 0.5), renewed(given[::-1], float("inf")), rtol=1e-5)


def test_a_single_batch_makes_evaluation_equal_training():
    """Through several layers: each sees what it would see in training mode on this batch."""
    torch.manual_seed(0)
    model = zoo.build("digits_resnet")
    x = torch.randn(16, 1, 8, 8) * 3 + 1
    renew_norms(model, [(x, None)])
    with torch.no_grad():
        # a running variance is of N - 1, the one used in training of N
        trained, evaluated = model.train()(x), model.eval()(x)
    assert torch.allclose(trained, evaluated, rtol=0.02, atol=0.02)


def test_nothing_else_changes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.9), nn.BatchNorm2d(4, affine=False)
    )
    model.add_module("untracked", nn.BatchNorm2d(4, track_running_stats=False))
    model[1].num_batches_tracked.fill_(17)
    model[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    renew_norms(model, batches([8, 8]))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == ("running" not in name), name
    assert model.training and not model[3].training and model[1].momentum == 0.3
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_no_batches_change_nothing():
    norm = nn.BatchNorm2d(3)
    renew_norms(nn.Sequential(norm), [])
    assert torch.equal(norm.running_mean, torch.zeros(3)) and torch.equal(norm.running_var, torch.ones(3))


def test_modes_are_put_back_after_an_error():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Linear(7, 7))
    with pytest.raises(RuntimeError):
        renew_norms(model, batches([4]))
    assert model[0].momentum == 0.3 and model[0].num_batches_tracked == 0
    assert not model[0]._forward_pre_hooks and model.training


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    model = zoo.build("digits_resnet")
    task = Classification(model, digits)
    fit(model, task, replace(task.recipe("scratch"), epochs=5))
    return model


def damaged(model):
    """A copy with a third of every convolution's outputs silenced."""
    other = zoo.build("digits_resnet")
    other.load_state_dict(model.state_dict())
    for module in other.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[::3] = 0
    return other


def test_recovery_brings_a_damaged_model_back(digits, trained):
    small = damaged(trained)
    task = Classification(small, digits)

    def accuracy():
        return task.evaluate(small, digits.test)["accuracy"]

    hurt = accuracy()
    renew_norms(small, digits.train.batches(256))
    renewed = accuracy()
    recover(small, task, replace(task.recipe("recover"), epochs=3), teacher=trained)
    assert hurt < 0.9 and renewed > hurt and accuracy() > max(renewed, 0.96)


def test_recovery_starts_from_renewed_norms(digits):
    torch.manual_seed(0)
    model = zoo.build("digits_resnet")
    small, by_hand = damaged(model), damaged(model)
    task = Classification(small, digits)
    assert recover(small, task, replace(task.recipe("recover"), epochs=0)).history == []
    renew_norms(by_hand, digits.train.batches(256, seed=0, augment=True))  # as the weights were trained
    for name, tensor in by_hand.state_dict().items():
        assert torch.allclose(small.state_dict()[name], tensor, atol=1e-5), name
    assert not torch.allclose(small.bn1.running_var, model.bn1.running_var, rtol=0.05, atol=0.05)


class Unlearning(Classification):
    """Classification whose training raises the loss."""

    def training_loss(self, output, target, recipe):
        return -super().training_loss(output, target, recipe).clamp_max(50)


def test_a_model_that_training_makes_worse_stays_as_it_was(digits, trained, tmp_path):
    renewed = damaged(trained)
    renew_norms(renewed, digits.train.batches(256, seed=0, augment=True))
    recipe = replace(Classification(trained, digits).recipe("recover"), epochs=1, lr=0.02)
    for task in (Unlearning(trained, digits), Classification(trained, digits)):
        for _ in range(2):  # the second time from the checkpoint of the end
            small = damaged(trained)
            found = recover(small, task, recipe, teacher=None, folder=tmp_path / type(task).__name__)
            start, end = (task.evaluate(each, digits.val)["accuracy"] for each in (renewed, small))
            same = all(torch.equal(t, renewed.state_dict()[n]) for n, t in small.state_dict().items())
            assert found.on_val["start"] == start and len(found.history) == 1
            if isinstance(task, Unlearning):
                assert found.kept == "start" and same and found.on_val["end"] < start
            else:
                assert found.kept == "end" and not same and found.on_val["end"] == end >= start


def test_recovery_resumes_bit_equal(digits, trained, tmp_path, monkeypatch):
    data = replace(digits, train=digits.train.take(range(200)))

    def run(folder, stop_at=None):
        @contextmanager
        def stopping(label, total):
            done = []

            def step(count=1, note=""):
                done.extend([note] * count)
                if len(done) == stop_at:
                    raise KeyboardInterrupt

            yield step
            assert len(done) == total == 8

        small = damaged(trained)
        task = Classification(small, data)
        recipe = replace(task.recipe("recover"), epochs=2, ema_decay=0.9)
        recover(small, task, recipe, teacher=trained, folder=folder, progress=stopping)
        return small.state_dict()

    straight = run(None)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=6)
    assert all(torch.equal(tensor, straight[name]) for name, tensor in run(tmp_path).items())
