"""The zoo's networks have the published sizes, load the published weights and can be trained."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus import zoo
from prunus.errors import UserError
from prunus.files import read_tensors
from prunus.graph import trace
from prunus.graph.axes import leaves
from prunus.zoo import MobileNetV1, MobileNetV2

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"

# parameters as in the papers or their usual implementations; multiply-adds of convolutions and linear layers
SIZES = {
    "resnet20": (269_722, 40.55e6),
    "resnet32": (464_154, 68.86e6),
    "resnet44": (658_586, 97.17e6),
    "resnet56": (853_018, 125.49e6),
    "resnet110": (1_727_962, 252.89e6),
    "resnet20_projection": (272_474, 40.81e6),
    "vgg16_bn": (14_987_210, 313.46e6),
    "densenet40": (1_019_722, 264.81e6),
    "mobilenet_v2": (2_236_682, 87.98e6),
    "digits_resnet": (123_914, 2.047e6),
    "fcn": (1_149_010, 1.147e6),
    "mlp": (19_978, 19_712),
    "conv6": (2_262_602, 153.88e6),
    "vgg11_bn": (9_491_530, 153.03e6),
    "vgg19_bn": (20_298_186, 398.40e6),
    "resnet18": (11_173_962, 555.42e6),
    "resnet50": (23_520_842, 1297.8e6),
    "resnext50": (22_992_714, 1344.0e6),
    "vit_tiny": (5_362_762, 345.64e6),  # attention adds 19.47 M, which belong to no layer
    "wrn_16_8": (10_961_370, 1548.1e6),
    "resnet110_bottleneck": (1_147_738, 167.43e6),
    "resnet164_bottleneck": (1_704_154, 247.65e6),
    "mobilenet_v1": (3_217_226, 46.35e6),
    "mobilenet_v1_64": (3_217_226, 46.35e6),
    "mobilenet_v2_64": (2_236_682, 87.98e6),
}
# parameters and multiply-adds in millions, counted as DHP does (arXiv:2003.13683): two multiply-adds are added for
# every element that a batch norm outputs
DHP_SIZES = {
    "resnet20_projection": (0.2725, 41.2),
    "resnet56_projection": (0.8558, 126.8),
    "resnet110_bottleneck": (1.148, 171.9),
    "resnet164_bottleneck": (1.704, 254.2),
}
# parameters and multiply-adds in millions for 1000 classes, by width. V1: table 6 of its paper, also where MetaPruning
# (arXiv:1903.10258) starts from. V2: its paper says 3.4 and 300, 2.6 and 209 (0.75); 1.4 is timm's mobilenetv2_140.
IMAGENET_SIZES = {
    (MobileNetV1, 1.0): (4.2, 569),
    (MobileNetV1, 0.75): (2.6, 325),
    (MobileNetV1, 0.5): (1.3, 149),
    (MobileNetV1, 0.25): (0.5, 41),
    (MobileNetV2, 1.0): (3.45, 300),
    (MobileNetV2, 0.75): (2.6, 209),
    (MobileNetV2, 1.4): (6.1, 582),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_is_the_papers(name):
    params, macs = SIZES[name]
    model = zoo.build(name, classes=10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(torch.zeros(2, *zoo.native_shape(name)))
    assert output.shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == params
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(macs, rel=1e-3)


BY = [
    *(("mobilenet_v1", 16), ("mobilenet_v1_64", 32), ("mobilenet_v1_224", 32)),
    *(("mobilenet_v2", 8), ("mobilenet_v2_64", 16), ("mobilenet_v2_224", 32)),
]


@pytest.mark.parametrize("name", DHP_SIZES)
def test_sizes_are_those_that_dhp_starts_from(name):
    model, example = zoo.build(name).eval(), torch.zeros(1, 3, 32, 32)
    elements = []
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.register_forward_hook(lambda _module, _args, output: elements.append(output.numel()))
    model(example)
    graph = trace(model, example)
    params, macs = DHP_SIZES[name]
    assert prunus.params(graph) / 1e6 == pytest.approx(params, abs=5e-4)
    assert (prunus.macs(graph) + 2 * sum(elements)) / 1e6 == pytest.approx(macs, abs=0.05)


@pytest.mark.parametrize(("network", "width"), IMAGENET_SIZES)
def test_mobilenets_for_large_images_have_the_published_sizes(network, width):
    graph = trace(network(1000, side=224, width=width).eval(), torch.zeros(1, 3, 224, 224))
    params, macs = IMAGENET_SIZES[network, width]
    assert prunus.params(graph) / 1e6 == pytest.approx(params, abs=0.06)
    assert prunus.macs(graph) / 1e6 == pytest.approx(macs, abs=1)


@pytest.mark.parametrize(("name", "by"), BY)
def test_large_images_are_halved_as_often_as_published(name, by):
    """The input of the global average has a side of 1/`by` of the image's."""
    seen = []
    model = zoo.build(name).eval()
    last = list(model.blocks)[-1]
    last.register_forward_hook(lambda _module, _args, output: seen.append(output.shape[2:]))
    channels, height, width = zoo.native_shape(name)
    model(torch.zeros(1, channels, height, width))
    assert seen == [(height // by, width // by)]


@pytest.mark.parametrize("depth", [20, 56])
def test_published_weights_load_strictly(depth):
    file = WEIGHTS / f"cifar10_resnet{depth}.safetensors"
    if not file.exists():
        pytest.skip("the published weights are not beside the project")
    model = zoo.build(f"resnet{depth}")
    model.load_state_dict(read_tensors(file), strict=True)


def test_zero_padded_shortcut_widens_and_halves():
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    y = zoo.resnet.PadShortcut(front=1, back=2)(x)
    assert y.shape == (2, 6, 2, 2)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert y[:, 0].abs().sum() == 0 and y[:, 4:].abs().sum() == 0


LEARNERS = (
    *("resnet20", "resnet18", "wrn_16_8", "vgg16_bn", "vgg19_bn", "densenet40", "mobilenet_v2"),
    *("digits_resnet", "fcn", "conv6", "resnet110_bottleneck", "resnext50", "vit_tiny"),
    *("mobilenet_v1", "mobilenet_v1_64", "mobilenet_v2_64", "mobilenet_v2_224"),
)


@pytest.mark.parametrize("name", LEARNERS)
def test_classes_and_input_channels_are_respected_and_every_parameter_learns(name):
    channels, side = 2, 16
    model = zoo.build(name, classes=7, in_shape=(channels, side, side))
    output = model(torch.randn(4, channels, side, side))
    assert output.shape == (4, 7)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [n for n, p in model.named_parameters() if p.grad.abs().sum() == 0] == []


def test_initialisation_follows_the_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return zoo.build("digits_resnet").conv1.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_unknown_name_offers_the_nearest():
    with pytest.raises(UserError, match=r"resnet65.*Did you mean resnet56"):
        zoo.build("resnet65")


@pytest.mark.parametrize(("name", "side"), [("vgg16_bn", 8), ("vgg19_bn", 15), ("conv6", 7), ("resnet18", 4)])
def test_too_small_images_are_refused_in_words(name, side):
    with pytest.raises(UserError, match=f"{name} needs larger images than {side}x{side}"):
        zoo.build(name, in_shape=(3, side, side))


@pytest.mark.parametrize(
    ("name", "shape"), [("conv6", (3, 8, 17)), ("fcn", (2, 1, 3)), ("vgg11_bn", (1, 16, 20))]
)
def test_images_of_other_shapes_are_read(name, shape):
    assert zoo.build(name, classes=4, in_shape=shape).eval()(torch.zeros(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("name", ["fcn", "conv6"])
def test_plain_networks_start_as_the_papers(name):
    """Glorot's normal initialisation: variance 2 / (fan in + fan out), mean 0."""
    torch.manual_seed(0)
    for module in zoo.build(name).modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            out, into, *kernel = module.weight.shape
            expected = (2 / ((out + into) * torch.Size(kernel).numel())) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert not module.bias.any()


@pytest.mark.parametrize("name", ["fcn", "conv6", "vgg11_bn", "resnet18", "resnext50", "wrn_16_8"])
def test_every_weight_but_the_outputs_can_shrink(name):
    """All axes are found: only the image's channels and the classes are fixed."""
    graph = trace(zoo.build(name).eval(), torch.zeros(1, *zoo.native_shape(name)))
    kernels = {n: shape for n, shape in graph.shapes.items() if n in graph.parameters and len(shape) > 1}
    for weight, shape in kernels.items():
        free = [any(True for _ in leaves(layout)) for layout in graph.layouts[weight][:2]]
        reads_images = shape[1] in (3, 784)
        assert free == [shape[0] != 10, not reads_images], weight


@pytest.mark.parametrize(
    ("name", "free"),
    [
        (
            "resnet110_bottleneck",
            3 + 2 * 36 + 1,
        ),  # one stream per stage, two widths per block, the stem
        ("resnet164_bottleneck", 3 + 2 * 54 + 1),
        *((name, 14) for name in ("mobilenet_v1", "mobilenet_v1_64", "mobilenet_v1_224")),
        *((name, 16 + 7 + 2) for name in ("mobilenet_v2_64", "mobilenet_v2_224")),
    ],
)
def test_every_width_is_found_and_can_be_halved_with_proof(name, free):
    torch.manual_seed(0)
    model, example = zoo.build(name, in_shape=(3, 32, 32)).eval(), torch.randn(1, 3, 32, 32)
    graph = trace(model, example)
    assert len(graph.axes) == free
    keep = prunus.select(graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=0.5))
    small = prunus.shrink(model, graph, keep)
    assert prunus.macs(trace(small, example)) == prunus.macs(graph, keep) <= 0.5 * prunus.macs(graph)
    assert sum(p.numel() for p in small.parameters()) == prunus.params(graph, keep)
