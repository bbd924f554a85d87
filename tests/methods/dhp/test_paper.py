"""DHP as the paper has it, against a second implementation."""

import torch
import torch.nn.functional as F
from torch import nn

from prunus.methods.dhp import DHP, Config
from prunus.selection import Budget
from tests.lib.dhp import assert_met, searched
from tests.lib.graphs import original


# ------------------------------------------------------------------------------ I12: the paper's dynamics
class Paper(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))
        return self.head(x.mean((2, 3)))


def reference(start, data, lr, decay, strength):
    """Sections 1.1 and 2.1 of the specification, written out: three layers, SGD, decay on all, prox."""
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}

    def generated(layer, out, into):
        b0, w1, b1, w2, b2 = (tensors[f"{layer}.{part}"] for part in ("b0", "w1", "b1", "w2", "b2"))
        z = out[:, None] * into[None, :] + b0
        e = z[:, :, None] * w1 + b1
        return torch.einsum("ijkm,ijm->ijk", w2, e).reshape(b2.shape) + b2

    for x, y in data:
        za, zb = tensors["za"], tensors["zb"]
        ones = [torch.ones(n, dtype=torch.float64) for n in (2, 3)]
        h = F.conv2d(x, generated("a", za, ones[0]), padding=1)
        h = F.relu(F.batch_norm(h, None, None, tensors["norm_a.weight"], tensors["norm_a.bias"], True))
        h = F.conv2d(h, generated("b", zb, za), padding=1)
        h = F.relu(F.batch_norm(h, None, None, tensors["norm_b.weight"], tensors["norm_b.bias"], True))
        output = h.mean((2, 3)) @ generated("head", ones[1], zb).t() + tensors["head.bias"]
        gradients = torch.autograd.grad(F.cross_entropy(output, y), list(tensors.values()))
        with torch.no_grad():
            for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
                velocity[name].mul_(0.9).add_(gradient + decay * tensor)
                tensor.sub_(lr * velocity[name])
            for z in (za, zb):
                z.copy_(z.sign() * (z.abs() - lr * strength).clamp_min(0))
    return tensors


def test_i12_twenty_steps_are_the_papers_to_ten_digits():
    lr, decay, strength = 2**-3, 1e-3, 2**-6  # whose product is exact in single precision, too
    torch.manual_seed(0)
    model = Paper().double()
    config = Config(mode="paper", strength=strength, floor=1)
    search = DHP(model, torch.zeros(1, 2, 5, 5).double(), Budget(macs=0.3), steps=1000, config=config)
    with torch.no_grad():
        for p in model.parameters():  # B0, B1 and B2 too
            p.add_(0.05 * torch.randn(p.shape, dtype=torch.float64))
        search.latents.values.add_(0.3 * search.latents.values.sign())  # none dies in these steps
    search.protect()
    now = {"za": search.latents.of("a"), "zb": search.latents.of("b")}
    for layer in ("a", "b", "head"):
        step = getattr(model, layer).parametrizations.weight[0]
        now |= {
            f"{layer}.{n}": t
            for n, t in zip(
                ("b0", "w1", "b1", "w2"), (step.bias0, step.weight1, step.bias1, step.weight2), strict=True
            )
        }
        now[f"{layer}.b2"] = model.get_parameter(original(f"{layer}.weight"))
    now |= {n: p for n, p in model.named_parameters() if n.startswith("norm") or n == "head.bias"}
    assert sum(t.numel() for t in now.values()) == sum(p.numel() for p in model.parameters())

    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(16, 2, 5, 5, generator=generator).double(), torch.randint(3, (16,), generator=generator))
        for _ in range(20)
    ]
    start = {n: t.detach().clone() for n, t in now.items()}
    expected = reference(start, data, lr, decay, strength)
    optimizer = torch.optim.SGD(search.groups(weight_decay=decay), lr=lr, momentum=0.9)
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        search.step(optimizer)
    for n, tensor in now.items():
        torch.testing.assert_close(tensor.detach(), expected[n].detach(), rtol=0, atol=1e-10, msg=n)
        assert not torch.equal(tensor, start[n])


def test_in_mode_paper_the_search_ends_near_the_budget():
    """First crossing: within 2 % above it, and no step later; the threshold then meets the budget itself."""
    search = searched(Budget(macs=0.5), Config(mode="paper", strength=0.5, round_to=1), steps=200, each=None)
    ratios = [record["ratio"] for record in search.records]
    assert search.finished and len(ratios) < 200
    assert all(ratio > 0.52 for ratio in ratios[:-1]) and ratios[-1] <= 0.52
    search.finish()
    assert_met(search)
    sizes = search.sizes()
    for name, place in search.latents.places.items():  # the largest stay
        kept = torch.tensor(search.keep[name])
        gone = [unit for unit in range(place.stop - place.start) if unit not in search.keep[name]]
        assert not gone or sizes[place][kept].min() >= sizes[place][gone].max()
