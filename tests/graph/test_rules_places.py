"""Operators in which places are data: only the dimension along which they work stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import TraceError
from tests.lib.rules import check_shrinks, check_stays, halve

ROWS = torch.tensor([2, 0, 1, 2])


def where(h):
    """Places along the tokens, for each feature: (2, 4, C)."""
    return ROWS[None, :, None].expand(h.shape)


def put(h, index, value):
    h = h.clone()
    h[index] = value
    return h


def rows_from_tokens(h):
    """Tokens (N, T, C) sent to the 4 nodes of a graph and summed there, as in graph networks."""
    return torch.zeros_like(h).index_add(1, ROWS, h)


def unpooled(h):
    pooled, places = F.max_pool2d(h.transpose(1, 2)[..., None], (2, 1), return_indices=True)
    return F.max_unpool2d(pooled, places, (2, 1)).squeeze(-1).transpose(1, 2)


SHRINK = {
    "max over tokens": lambda h: h.max(1)[0],
    "min over tokens": lambda h: h.min(1, keepdim=True).values,
    "the larger of two": lambda h: torch.stack([h, h.roll(1, 1)], 3).max(3)[0],
    "topk of tokens": lambda h: h.topk(2, 1)[0],
    "sorted tokens": lambda h: h.sort(1, descending=True)[0],
    "median of tokens": lambda h: h.median(1)[0],
    "nanmedian of tokens": lambda h: h.nanmedian(1)[0],
    "mode of tokens": lambda h: h.round().mode(1)[0],
    "second smallest token": lambda h: h.kthvalue(2, 1)[0],
    "largest token so far": lambda h: h.cummax(1)[0],
    "smallest token so far": lambda h: h.cummin(1)[0],
    "sum of tokens so far": lambda h: h.cumsum(1),
    "logarithm of the sum so far": lambda h: h.logcumsumexp(1),
    "scatter": lambda h: torch.zeros_like(h).scatter(1, where(h), h),
    "scatter a number": lambda h: h.scatter(1, where(h), 0.5),
    "scatter_add": lambda h: h.scatter_add(1, where(h), h),
    "scatter_reduce": lambda h: h.scatter_reduce(1, where(h), h, "amax"),
    "gather": lambda h: h.gather(1, where(h)),
    "gather with repeated places": lambda h: h.gather(1, ROWS[None, :, None].repeat(2, 1, h.shape[2])),
    "take along tokens": lambda h: torch.take_along_dim(h, h.argsort(1), 1),
    "index_add": rows_from_tokens,
    "index_copy": lambda h: h.index_copy(1, torch.tensor([1, 3]), h[:, :2]),
    "index_fill": lambda h: h.index_fill(1, torch.tensor([1, 3]), 0.5),
    "index_select": lambda h: h.index_select(1, ROWS),
    "indexed tokens": lambda h: h[:, ROWS],
    "tokens chosen by a mask": lambda h: h[:, torch.tensor([True, False, True, True])],
    "indexed pairs": lambda h: h[torch.tensor([0, 1]), torch.tensor([3, 2])],
    "written tokens": lambda h: put(h, (slice(None), torch.tensor([0, 2])), h[:, 1:3]),
    "tokens written where a mask is true": lambda h: put(h, h.detach().sum(2).abs() * 0 > 1, 0.0),
    "slice_scatter": lambda h: h.slice_scatter(h[:, :2], 1, 1, 3),
    "select_scatter": lambda h: h.select_scatter(h[:, 0], 1, 2),
    "unpooling": unpooled,
    "bucketize": lambda h: torch.bucketize(h, torch.tensor([-0.5, 0.0, 0.5])).to(h),
    "searchsorted": lambda h: torch.searchsorted(torch.tensor([-0.5, 0.0, 0.5]), h).to(h),
    "the largest feature, not which": lambda h: (
        h * h.max(2, keepdim=True)[0] - h.min(-1, keepdim=True).values
    ),
    "one of some numbers": lambda h: torch.isin(h.round(), torch.tensor([0.0, 1.0])).to(h),
}
STAY = {
    "max over features": (lambda h: h.max(2)[1][..., None].float().expand(-1, -1, 6), "max"),
    "argmax": (lambda h: h.argmax(-1, keepdim=True).float().expand(-1, -1, 6), "argmax"),
    "topk of features": (lambda h: h.topk(6, 2)[0], "topk"),
    "sorted features": (lambda h: h.sort(-1)[0], "sort"),
    "sum of features so far": (lambda h: h.cumsum(2), "cumsum"),
    "indexed features": (lambda h: h[..., torch.tensor([5, 4, 3, 2, 1, 0])], "index"),
    "gathered features": (lambda h: h.gather(2, h.argsort(2)), "sort"),
    "an operator without a rule": (lambda h: h.take(torch.arange(6)), "take"),
    "masked_scatter": (lambda h: h.masked_scatter(h > 0, h), "masked_scatter"),
}


@pytest.mark.parametrize("name", SHRINK)
def test_units_beside_the_places_shrink(name):
    check_shrinks(SHRINK[name])


@pytest.mark.parametrize("name", STAY)
def test_units_whose_places_count_stay(name):
    check_stays(*STAY[name])


@pytest.mark.parametrize(("returned", "left"), [("values", ["a"]), ("indices", [])])
def test_a_place_that_is_returned_counts(returned, left):
    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(h), getattr(h.max(1), returned)

    if left:
        assert list(prunus.trace(Largest(), torch.randn(2, 5)).axes) == left
    else:
        with pytest.raises(TraceError, match="max in the model itself"):
            prunus.trace(Largest(), torch.randn(2, 5))


class Bags(nn.Module):
    """Sums of rows of a table, for bags of words."""

    def __init__(self, mode):
        super().__init__()
        self.table, self.out = nn.EmbeddingBag(9, 6, mode=mode), nn.Linear(6, 3)

    def forward(self, words):
        return self.out(self.table(words))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_columns_of_a_bag_shrink_and_its_rows_stay(mode):
    _, small = halve(Bags(mode), torch.tensor([[1, 2, 3], [0, 0, 8]]))
    assert small.table.weight.shape == (9, 3)


class Router(nn.Module):
    """Keeps the two tokens with the largest score, weighs them with it, and puts them back."""

    def __init__(self):
        super().__init__()
        self.up, self.score, self.work, self.out = (
            nn.Linear(5, 8), nn.Linear(8, 1), nn.Linear(8, 6), nn.Linear(8, 3)
        )  # fmt: skip
        self.back = nn.Linear(6, 8)

    def forward(self, x):
        h = self.up(x)
        weight, chosen = self.score(h).squeeze(-1).topk(2, 1)
        chosen = chosen[..., None].expand(-1, -1, h.shape[-1])
        done = self.back(F.relu(self.work(h.gather(1, chosen)))) * weight[..., None]
        return self.out(h.scatter_add(1, chosen, done))


def test_a_router_of_tokens_shrinks_in_all_widths():
    _, small = halve(Router(), torch.randn(2, 4, 5))
    assert small.up.weight.shape == (4, 5) and small.work.weight.shape == (3, 4)
