"""Small DHP searches, and checks of their results."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import prunus
from prunus.methods.dhp import DHP

X = torch.zeros(1, 1, 8, 8)


class Small(nn.Module):
    """A stem, a residual block and a depthwise layer; with batch norms or without."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), norm(16)
        self.a, self.norm_a = nn.Conv2d(16, 24, 3, padding=1), norm(24)
        self.b, self.norm_b = nn.Conv2d(24, 16, 3, padding=1), norm(16)
        self.depth, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 20, 1)
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        return self.head(F.relu(self.point(self.depth(F.relu(x)))).mean((2, 3)))


def small(seed=0, norm=nn.BatchNorm2d):
    torch.manual_seed(seed)
    return Small(norm)


def batches(steps, seed=0):
    """Ten patterns under noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(10, 1, 8, 8, generator=generator)
    for _ in range(steps):
        y = torch.randint(10, (32,), generator=generator)
        yield patterns[y] + 0.5 * torch.randn(32, 1, 8, 8, generator=generator), y


def sgd(groups, lr=0.05):
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def adamw(groups, lr=3e-3):
    return torch.optim.AdamW(groups, lr=lr)


def searched(budget, config=None, steps=60, optimizer=sgd, model=None, example=X, each=None):
    """The user's own loop without `finish`."""
    model = model or small()
    search = DHP(model, example, budget, steps=steps, config=config)
    optimizer = optimizer(search.groups(weight_decay=5e-4))
    for x, y in batches(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)
        loss.backward()
        optimizer.step()
        if search.keep is None:
            alive = (
                search.above_threshold() & search.alive.bool()
            )  # the optimiser may have moved what is gone
            search.were_left = {
                name: alive[place].nonzero().flatten().tolist()
                for name, place in search.latents.places.items()
            }
        search.step(optimizer)
        if each:
            each(search, optimizer)
        if search.finished:
            break
    return search


def step_alone(search, optimizer):
    """A step of the search after a loss without information."""
    search.latents.values.grad = torch.zeros_like(search.latents.values)
    search.step(optimizer)


def figure(search, keep=None):
    """The cost of a keep, in the budget's unit."""
    return getattr(prunus, search.budget.name)(search.graph, keep)


# ------------------------------------------------------------------------------------- the budget
def assert_met(search):
    """Assert that the cost is within the budget, and within 0.5 % of it unless no remaining unit would fit."""
    before, cost = figure(search), figure(search, search.keep)
    limit = search.budget.limit(before)
    assert cost <= limit
    if cost < limit - 0.005 * before:
        for name, left in search.were_left.items():
            if gone := [unit for unit in left if unit not in search.keep[name]]:
                more = figure(search, search.keep | {name: [*search.keep[name], gone[0]]})
                assert more > limit or more == cost, (
                    name
                )  # away from the peak of memory a unit may cost nothing


# ------------------------------------------------------------------------------------- bad input
def untouched(model):
    return not any(map(parametrize.is_parametrized, model.modules()))
