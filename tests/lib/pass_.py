"""Small PASS searches, and checks of their results."""

import torch
import torch.nn.functional as F

import prunus
from prunus.methods.pass_ import PASS, Config
from prunus.selection import Budget
from tests.lib.dhp import small

X = torch.zeros(1, 1, 8, 8)
HALF = Budget(macs=0.5)


def batches(steps, seed=0):
    """Ten patterns under noise."""
    patterns = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(100))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        y = torch.randint(10, (32,), generator=generator)
        yield patterns[y] + 0.5 * torch.randn(32, 1, 8, 8, generator=generator), y


def searched(budget=HALF, config=None, steps=12, lr=1e-2, model=None, example=X, each=None, **options):
    """The loop of PASS's docstring without `finish`; its learning rate makes masks change."""
    search = PASS(model or small(), example, budget, steps=steps, config=config or Config(), **options)
    optimizer = torch.optim.Adam(search.learned(), lr=lr)
    for x, y in batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(search(x), y).backward()
        optimizer.step()
        if each:
            each(search)
        search.step()
    return search


def masks_of(search):
    """The units whose masks are on now, by axis."""
    kept = search.choose_units(search.scores())
    return {name: kept[place].nonzero().flatten().tolist() for name, place in search.gates.places.items()}


def figure(search, keep=None):
    """The cost of a keep, in the budget's unit."""
    return getattr(prunus, search.budget.name)(search.graph, keep)


# -------------------------------------------------------------------- 7: the user's model is left alone
def snapshot(model):
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "ids": [id(tensor) for tensor in [*model.parameters(), *model.buffers()]],
        "modes": [module.training for module in model.modules()],
        "learning": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "hooks": [list(module._forward_hooks) for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "attributes": [list(vars(module)) for module in model.modules()],
        "momenta": [getattr(module, "momentum", None) for module in model.modules()],
    }


def assert_untouched(model, before):
    now = snapshot(model)
    for name, tensor in before.pop("tensors").items():
        assert torch.equal(now["tensors"][name], tensor), name
    for key, value in before.items():
        assert now[key] == value, key
