"""A product's equations give its output, for every kind of product, and its weight can be read and written."""

import threading
from contextlib import contextmanager

import pytest
import torch

from prunus.errors import UserError
from prunus.refit.walk import Walk

ROUNDING = 1e-4  # relative: sums of at most 100 products of numbers around 1, in float32


def conv(rank, **options):
    return getattr(torch.nn, f"Conv{rank}d")(4, 6, 3, **options), torch.randn(5, 4, *[7] * rank)


def transposed(rank, **options):
    return getattr(torch.nn, f"ConvTranspose{rank}d")(4, 6, 3, **options), torch.randn(5, 4, *[5] * rank)


class Times(torch.nn.Module):
    """A product written by hand."""

    def __init__(self, shape, compute):
        super().__init__()
        self.weight, self.compute = torch.nn.Parameter(torch.randn(shape)), compute

    def forward(self, x):
        return self.compute(x, self.weight)


KINDS = {
    "convolution": lambda: conv(2),
    "1 dimension": lambda: conv(1, padding=1),
    "3 dimensions": lambda: conv(3, padding=1, bias=False),
    "strided": lambda: conv(2, stride=2, padding=1),
    "uneven": lambda: conv(2, stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "dilated": lambda: conv(2, dilation=2, padding=2),
    "grouped": lambda: conv(2, groups=2),
    "depthwise": lambda: (torch.nn.Conv2d(4, 8, 3, groups=4, padding=1), torch.randn(3, 4, 6, 6)),
    "transposed": lambda: transposed(2, stride=2, padding=1, output_padding=1),
    "transposed, 1 dimension": lambda: transposed(1, stride=3),
    "transposed, grouped": lambda: transposed(2, stride=2, groups=2, dilation=2),
    "channels last": lambda: (
        torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
        torch.randn(3, 4, 7, 7).to(memory_format=torch.channels_last),
    ),
    "linear": lambda: (torch.nn.Linear(5, 3), torch.randn(7, 5)),
    "linear of tokens": lambda: (torch.nn.Linear(5, 3, bias=False), torch.randn(2, 4, 5)),
    "on the right": lambda: (Times((5, 3), lambda x, w: x @ w), torch.randn(7, 5)),
    "on the left": lambda: (Times((3, 5), lambda x, w: w @ x), torch.randn(5, 7)),
    "a batch of matrices": lambda: (Times((2, 5, 3), torch.bmm), torch.randn(2, 7, 5)),
    "one matrix for a batch": lambda: (
        Times((5, 3), lambda x, w: torch.bmm(x, w.expand(2, 5, 3))),
        torch.randn(2, 7, 5),
    ),
    "a batch on the left": lambda: (Times((2, 3, 5), lambda x, w: torch.bmm(w, x)), torch.randn(2, 5, 7)),
}


@contextmanager
def stopped(kind):
    """A pass that has stopped at its product, and the model."""
    torch.manual_seed(0)
    model, x = KINDS[kind]()
    with Walk(model, x) as walk:
        yield walk.next(), model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing, offset", [(1, 0), (3, 1), (3, 2)])
def test_the_equations_give_the_output(kind, spacing, offset):
    with stopped(kind) as (at, _):
        product, out, found = at.product, at.run(), 0
        bias = 0 if product.bias is None else product.bias.unflatten(0, (product.groups, 1, -1))
        for u, y in product.equations(out, spacing, offset):
            assert torch.allclose(u @ product.matrix().float().mT + bias, y, rtol=ROUNDING, atol=ROUNDING)
            found += u.shape[1]
        assert found == product.count(out) if spacing == 1 else 0 < found < product.count(out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_written_as_it_was_read(kind):
    with stopped(kind) as (at, model):
        assert at.product.shape == tuple(at.product.matrix().shape)
        before = model.weight.detach().clone()
        at.product.write(2 * at.product.matrix())
        assert torch.equal(model.weight, 2 * before)


def test_small_blocks_give_the_same_equations(monkeypatch):
    with stopped("grouped") as (at, _):
        out = at.run()
        whole = [torch.cat(each, 1) for each in zip(*at.product.equations(out), strict=True)]
        monkeypatch.setattr("prunus.refit.products.BLOCK", 1)
        blocks = list(at.product.equations(out))
        assert len(blocks) == 5
        for one, other in zip(whole, map(list, zip(*blocks, strict=True)), strict=True):
            assert torch.equal(one, torch.cat(other, 1))


def test_a_pass_that_is_ended_leaves_no_thread():
    before = set(threading.enumerate())
    with stopped("convolution"):
        assert len(set(threading.enumerate()) - before) == 1
    assert set(threading.enumerate()) <= before


def test_an_error_in_the_model_reaches_the_caller():
    refused = pytest.raises(
        UserError, match=r"the batch tensor \(1, 2, 5, 5\) float32: RuntimeError: .*to have 3 channels"
    )
    with refused, Walk(torch.nn.Conv2d(3, 4, 1), torch.randn(1, 2, 5, 5)) as walk:
        while walk.next():
            pass


def test_a_pass_goes_on_to_its_end():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with Walk(model, torch.randn(2, 3)) as walk:
        names = []
        while at := walk.next():
            names.append(at.name)
    assert names == ["0.weight", "2.weight"]
