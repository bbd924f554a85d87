"""Networks as people bring them: weights in seldom places, precisions, queries by rank, other tools, several rounds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import prunus
from tests.lib.cases import Cases, answers, check_case

CASES = Cases()


class Pyramid(nn.Module):
    """Levels added with learned weights of two numbers, shifted and scaled by plain parameters."""

    def __init__(self, c=16):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 20, 3, 2, 1)
        self.fine, self.coarse, self.head = nn.Conv2d(12, c, 1), nn.Conv2d(20, c, 1), nn.Conv2d(c, 6, 1)
        self.weights = nn.Parameter(torch.tensor([1.0, 0.5]))
        self.shift, self.scale = nn.Parameter(torch.randn(1, c, 1, 1)), nn.Parameter(torch.rand(1, 6, 1, 1))

    def forward(self, x):
        x = self.a(x).relu()
        weights = self.weights.relu() / (self.weights.relu().sum() + 1e-4)
        up = F.interpolate(self.coarse(self.b(x).relu()), size=x.shape[2:])
        x = weights[0] * self.fine(x) + weights[1] * up
        return self.head((x + self.shift).relu()) * self.scale


@CASES.add("a.weight", "b.weight", "fine.weight")
def weighted_pyramid():
    return Pyramid(), torch.randn(2, 3, 8, 8)


class Unrolled(nn.Module):
    """Steps of an iteration: convolutions by bare parameters, a soft threshold, a step back to the picture."""

    def __init__(self, c=16, steps=2):
        super().__init__()
        self.threshold = nn.Parameter(torch.full((steps,), 0.01))
        self.there = nn.ParameterList(torch.randn(c, 1, 3, 3) * 0.3 for _ in range(steps))
        self.inner = nn.ParameterList(torch.randn(c, c, 3, 3) * 0.1 for _ in range(steps))
        self.back = nn.ParameterList(torch.randn(1, c, 3, 3) * 0.1 for _ in range(steps))

    def forward(self, x):
        for i, (there, inner, back) in enumerate(zip(self.there, self.inner, self.back, strict=True)):
            z = F.conv2d(F.conv2d(x, there, padding=1).relu(), inner, padding=1)
            x = x + F.conv2d(z.sign() * (z.abs() - self.threshold[i]).relu(), back, padding=1)
        return x


@CASES.add("there.0", "inner.0", "there.1", "inner.1")
def unrolled_iteration():
    return Unrolled(), torch.randn(2, 1, 8, 8)


class Cosine(nn.Module):
    """Attention along each side of a picture, then features and classes at unit length."""

    def __init__(self, c=24):
        super().__init__()
        self.a, self.squeeze = nn.Conv2d(3, c, 3), nn.Conv2d(c, 8, 1)
        self.high, self.wide, self.b = nn.Conv2d(8, c, 1), nn.Conv2d(8, c, 1), nn.Conv2d(c, 16, 1)
        self.classes = nn.Parameter(torch.randn(16, 5))

    def forward(self, x):
        x = self.a(x)
        _, _, h, w = x.shape
        sides = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        high, wide = F.hardswish(self.squeeze(sides)).split([h, w], 2)
        x = self.b(x * self.high(high).sigmoid() * self.wide(wide.transpose(2, 3)).sigmoid()).mean((2, 3))
        return 8 * F.normalize(x, dim=1) @ F.normalize(self.classes, dim=0)


@CASES.add("a.weight", "squeeze.weight", "b.weight")
def cosines_after_attention_by_sides():
    return Cosine(), torch.randn(2, 3, 9, 8)


def block(a, b):
    norm = nn.InstanceNorm3d(b, affine=True, track_running_stats=True)
    return nn.Sequential(nn.ConstantPad3d(1, 0.0), nn.Conv3d(a, b, 3), norm, nn.LeakyReLU(0.01))


@CASES.add("0.1.weight", "1.1.weight", "2.weight")
def volumes():
    layers = [block(1, 10), block(10, 12), nn.ConvTranspose3d(12, 8, 2, 2), nn.Conv3d(8, 2, 1)]
    return nn.Sequential(*layers), torch.randn(2, 1, 4, 4, 4)


class Queries(nn.Module):
    """The best tokens become queries, which read a map at points of their own."""

    def __init__(self, d=16, points=3, queries=4):
        super().__init__()
        self.points, self.queries = points, queries
        self.a, self.score, self.value = nn.Conv2d(3, d, 2, 2), nn.Linear(d, 5), nn.Conv2d(d, d, 1)
        self.where, self.weigh = nn.Linear(d, 2 * points), nn.Linear(d, points)
        self.mlp, self.head = nn.Sequential(nn.Linear(d, 24), nn.ReLU(), nn.Linear(24, d)), nn.Linear(d, 6)

    def forward(self, x):
        x = self.a(x).relu()
        tokens = x.flatten(2).transpose(1, 2)
        best = self.score(tokens).amax(-1).topk(self.queries, 1)[1]
        q = tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1]))
        where = self.where(q).view(len(q), self.queries, self.points, 2).tanh()
        read = F.grid_sample(self.value(x), where, align_corners=False)  # (N, D, queries, points)
        q = q + (read * self.weigh(q).softmax(-1)[:, None]).sum(-1).transpose(1, 2)
        return self.head(q + self.mlp(q))


@CASES.add("a.weight", "mlp.0.weight")
def queries_by_rank():
    return Queries(), torch.randn(2, 3, 8, 8)


class Restorer(nn.Module):
    """A picture made larger by a shuffle of pixels, beside a plain enlargement."""

    def __init__(self, c=12, scale=2):
        super().__init__()
        self.scale, self.a, self.body = scale, nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.up, self.out = nn.Conv2d(c, c * scale**2, 3, padding=1), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x):
        y = self.a(x)
        y = F.pixel_shuffle(self.up(y + self.body(y.relu())), self.scale)
        return self.out(y.relu()) + F.interpolate(x, scale_factor=self.scale, mode="bilinear")


@CASES.add("a.weight", "up.weight")
def shuffled_pixels():
    return Restorer(), torch.randn(2, 3, 8, 8)


# -------------------------------------------------------------------------------------------------- tests
@pytest.mark.parametrize("name", CASES)
def test_networks_with_weights_in_seldom_places_are_pruned_and_proved(name):
    CASES.check(name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_pruned_and_proved(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 3)).to(dtype)
    _, _, small = check_case(
        model, torch.randn(4, 6, dtype=dtype), ["0.weight"], same_as_masked=False, exports=False
    )
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}


def test_masks_of_torchs_own_pruning_stay_and_train_on():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 4, 1)]
    model, x = nn.Sequential(*layers), torch.randn(2, 3, 8, 8)
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.ln_structured(model[2], "weight", 0.25, 2, 0)
    _, _, small = check_case(model.to(memory_format=torch.channels_last), x, exports=False)
    mask = small[0].weight_mask
    assert mask.shape == small[0].weight_orig.grad.shape == small[0].weight.shape and (mask == 0).any()
    prune.remove(small[0], "weight")
    assert (small[0].weight[mask == 0] == 0).all()


def net():
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))


def test_the_files_of_several_rounds_in_a_row_give_the_last_network(tmp_path):
    torch.manual_seed(0)
    model, x = net(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.8, 0.9))
    for turn in range(3):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
        graph = prunus.trace(model.eval(), x)
        keep = prunus.select(graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=0.7))
        small = prunus.shrink(model, graph, keep)
        optimizer, _ = prunus.carry_over(graph, keep, model, small, optimizer=optimizer)
        prunus.save(tmp_path / str(turn), small, keep, graph)
        model = small
    loaded = net()
    for turn in range(3):
        loaded = prunus.load(tmp_path / str(turn), loaded)
    assert torch.equal(answers(loaded.eval(), x)[0], answers(model.eval(), x)[0])
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert {id(parameter) for parameter in optimizer.state} == {
        id(parameter) for parameter in model.parameters()
    }
