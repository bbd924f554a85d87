"""Cut for one call, masked, and made small: three ways to a network of other widths, and one answer.

Cut for one call is how a supernet is trained, made small is how networks are tried and handed on. Masked, all shapes as
they are and zeros in the place of what goes, is what both are held against; norms and softmax over an axis take their
statistics over what stays, as the proof has it.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from prunus import surgery
from prunus.graph import Places, Reference, skeleton
from prunus.inputs import call
from prunus.recover import renew_norms
from prunus.surgery import cut, effective_tensors, slice_tensor
from prunus.surgery.slicing import mask_tensors, zero_tensor
from tests.lib.nets import NETS, Attention
from tests.lib.providers import FORMS, network, some_widths, supernet

ZOO = ("resnet20", "resnet110_bottleneck", "mobilenet_v1", "mobilenet_v2", "vgg11_bn", "densenet40", "conv6")


class PreActivation(nn.Module):
    """Norm and activation stand before the convolutions; the stream itself is never normed."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(14)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (10, 8, 10, 12))
        convs = ((10, 8, 1), (8, 10, 1), (10, 12, 2), (12, 14, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, s, 1, bias=False) for a, b, s in convs)
        self.skip, self.head = nn.Conv2d(10, 14, 1, stride=2), nn.Linear(14, 5)

    def forward(self, x):
        x = self.stem(x)
        for first in (0, 2):
            same = F.relu(self.norms[first](x))
            y = self.convs[first](same)
            y = self.convs[first + 1](F.relu(self.norms[first + 1](y)))
            x = y + (self.skip(same) if first else x)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Inception(nn.Module):
    """Branches of several depths, one of them pooled, side by side; then a norm over all of them."""

    def __init__(self):
        super().__init__()
        self.one, self.pooled = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 5, 1)
        self.three = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
        self.five = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 5, padding=2))
        self.norm, self.conv, self.head = nn.BatchNorm2d(25), nn.Conv2d(25, 9, 1), nn.Linear(9, 5)

    def forward(self, x):
        branches = (self.one(x), self.three(x), self.five(x), self.pooled(F.max_pool2d(x, 3, 1, 1)))
        x = F.relu(self.norm(torch.cat(branches, 1)))
        return self.head(self.conv(x).amax((2, 3)))


class UNet(nn.Module):
    """A network with skip connections: features of the way down are concatenated to those of the way up."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.bottom, self.norm = nn.Conv2d(12, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 10, 2, 2), nn.ConvTranspose2d(11, 7, 2, 2)
        self.mix2, self.mix1 = nn.Conv2d(22, 11, 3, padding=1), nn.Conv2d(15, 9, 3, padding=1)
        self.out = nn.Conv2d(9, 2, 1)

    def forward(self, x):
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(one))
        x = F.relu(self.norm(self.bottom(two)))
        x = F.relu(self.mix2(torch.cat([self.up2(x), two], 1)))
        x = F.relu(self.mix1(torch.cat([self.up1(x), one], 1)))
        return self.out(x)


class ViT(nn.Module):
    """Patches, a class token and positions; then a block with fused queries, keys and values in heads."""

    def __init__(self):
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 7, 4, 4), Attention(width=24, heads=3)
        self.token = nn.Parameter(torch.randn(1, 1, 7))
        self.places = nn.Parameter(torch.randn(1, 5, 7))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.block(x + self.places)


class Tied(nn.Module):
    """A language model whose input embedding and output layer are one tensor."""

    def __init__(self):
        super().__init__()
        self.words, self.inner, self.back = nn.Embedding(30, 16), nn.Linear(16, 20), nn.Linear(20, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids)
        return self.head(x + self.back(F.relu(self.inner(x))))


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self):
        super().__init__()
        self.inner, self.lstm = nn.Linear(7, 12), nn.LSTM(12, 10, batch_first=True)
        self.after, self.head = nn.Linear(10, 8), nn.Linear(8, 5)

    def forward(self, x):
        x, _ = self.lstm(F.relu(self.inner(x)))
        return self.head(F.relu(self.after(x[:, -1])))


MORE = {
    "preactivation": (PreActivation, (2, 3, 8, 8)),
    "inception": (Inception, (2, 3, 8, 8)),
    "unet": (UNet, (2, 3, 8, 8)),
    "vit": (ViT, (2, 3, 8, 8)),
    "tied": (Tied, None),
    "recurrent": (Recurrent, (2, 6, 7)),
}
SMALL = (*(name for name in NETS if name != "norms"), *MORE)  # the weights of "norms" are parametrised


def built(name):
    """A network in double precision and evaluation mode, no two of its weights alike, and an example."""
    torch.manual_seed(0)
    if name not in MORE:
        model, example = network(name)
        if name not in NETS:  # fresh ones would let their input die away, layer by layer
            renew_norms(model, [(torch.randn_like(example.repeat_interleave(4, 0)), None)])
        return model, example
    make, shape = MORE[name]
    model = make().double().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.3)).add_(0.1 * torch.rand_like(tensor))
    return model, torch.randn(shape).double() if shape else torch.arange(14).view(2, 7)


def alike(a, b, error=1e-9):
    """Whether all differences are small beside the largest value."""
    return a.shape == b.shape and bool((a - b).abs().max() <= error * b.abs().max())


def masked_answers(model, graph, keep, example):
    """The output of the network with zeros in all weights of the removed units."""
    whole = surgery.mask(model, graph, keep)
    return Reference(Places(keep)).run(whole, skeleton.named_tensors(whole), example, graph.layouts)


@pytest.mark.parametrize("name", [*ZOO, *SMALL])
def test_cut_masked_and_made_small_answer_alike(name):
    model, example = built(name)
    net = supernet(model, example, order=True)
    for seed in range(1 if name in ZOO else 4):
        widths = some_widths(net, seed)
        with torch.no_grad():
            expected, ours = model(example), net.output(widths, example)
            small = call(net.network(widths), example)
            whole = masked_answers(model, net.graph, net.keep(widths), example)
        assert ours.shape == expected.shape and not alike(ours, expected, 0.01)
        assert alike(ours, small) and alike(ours, whole)


@pytest.mark.parametrize("name", [*ZOO, *SMALL])
def test_whole_it_is_the_network_that_was_given(name):
    model, example = built(name)
    net = supernet(model, example, order=True)
    whole = net.network(net.graph.widths())
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model(example)
        assert torch.equal(whole(example), expected)
        same = (
            alike if name == "recurrent" else torch.equal
        )  # torch sums these weights in another order if given
        assert same(net.output(net.graph.widths(), example), expected)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "densenet40", *SMALL])
def test_gradients_are_those_of_the_small_network_in_their_places(name):
    model, example = built(name)
    net = supernet(model, example, order=True)
    widths = some_widths(net, seed=1)
    keep, small = net.keep(widths), net.network(widths)

    def gradients(answers, net):
        names, tensors = zip(*net.named_parameters(), strict=True)
        found = torch.autograd.grad(answers.square().sum(), tensors, allow_unused=True)
        pairs = zip(names, tensors, found, strict=True)
        return {name: torch.zeros_like(t) if each is None else each for name, t, each in pairs}

    ours = gradients(net.output(widths, example), net.net)
    theirs = gradients(call(small, example), small)
    assert ours.keys() == theirs.keys()
    for name, part in cut(ours, net.graph, keep).items():
        assert alike(part, theirs[name]), name
        assert torch.equal(zero_tensor(ours[name], net.graph.layouts[name], keep), ours[name]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["digits", "mobilenet_v2"])
def test_gradients_are_those_of_the_masked_network_and_nothing_outside_the_crop_has_any(name, form):
    torch.manual_seed(0)
    model, example = network(name)  # the paper's unscaled weights amplify rounding errors
    net = supernet(model, example, form)
    widths = some_widths(net, seed=1)
    keep = net.keep(widths)
    learn = [p for p in net.parameters() if p.requires_grad]

    def gradients(answers):
        return torch.autograd.grad(answers.square().sum(), learn, allow_unused=True)

    whole = mask_tensors(effective_tensors(model) | net.make_weights(widths), net.graph, keep)
    ours = gradients(net.output(widths, example))
    theirs = gradients(functional_call(model, whole, (example,)))
    for a, b in zip(ours, theirs, strict=True):
        assert alike(a, b, 1e-6)
    assert any(a.abs().max() > 0 for a in ours)
    names = {id(p): n for n, p in model.named_parameters()}
    for parameter, gradient in zip(learn, ours, strict=True):
        if id(parameter) in names:
            ones = {names[id(parameter)]: torch.ones_like(gradient)}
            outside = mask_tensors(ones, net.graph, keep)[names[id(parameter)]] == 0
            assert not gradient[outside].any()


def test_a_paper_block_has_no_gradient_outside_the_crop():
    model, example = built("digits")
    net = supernet(model, example, "paper")
    widths = some_widths(net, seed=1)
    net.output(widths, example).sum().backward()
    for name, block in zip(net.maker.context, net.maker.blocks, strict=True):
        inside = (
            mask_tensors({name: torch.ones(block.shape)}, net.graph, net.keep(widths))[name].flatten() > 0
        )
        assert not block.second.weight.grad[~inside].any() and not block.second.bias.grad[~inside].any()
        assert block.second.bias.grad[inside].any()


@pytest.mark.parametrize("form", FORMS[1:])
def test_what_is_made_and_then_cut_is_what_the_small_network_holds(form):
    model, example = built("mobilenet_v2")
    net = supernet(model, example, form, order=True)
    widths = some_widths(net)
    made, small = net.make_weights(widths), effective_tensors(net.network(widths))
    assert made
    for name, weight in made.items():
        assert torch.equal(small[name], slice_tensor(weight, net.graph.layouts[name], net.keep(widths)))
