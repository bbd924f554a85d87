"""Detectors: outputs whose number depends on the data, behind proposals, boolean indices and suppression."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.errors import PruningError
from tests.lib.models import torchvision_models
from tests.lib.nets import random_keep

CLASSES = 3


def suppressed(boxes, scores, most=0.5):
    """The places of the boxes that overlap no better one, as non-maximum suppression in plain torch finds them."""
    order, kept = scores.argsort(descending=True), []
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(int(best))
        corner = torch.maximum(boxes[best, :2], boxes[order, :2])
        end = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (end - corner).clamp(min=0).prod(1)
        order = order[shared <= most * (area[best] + area[order] - shared)]
    return torch.tensor(kept, dtype=torch.long)


class Detector(nn.Module):
    """Proposals by topk, of which boolean indices and suppression leave some; each is then classified."""

    def __init__(self, least=0.0):
        super().__init__()
        self.least = least
        self.stem, self.body = nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.Conv2d(10, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.objects, self.boxes = nn.Conv2d(12, 1, 1), nn.Conv2d(12, 4, 1)
        self.hidden, self.classes = nn.Linear(12, 14), nn.Linear(14, CLASSES)

    def forward(self, images, targets=None):
        x = self.norm(self.body(F.relu(self.stem(torch.stack(images))))).relu()
        scores, boxes = self.objects(x).sigmoid().flatten(1), self.boxes(x).flatten(2)
        if self.training:
            wanted = torch.stack([target["scores"] for target in targets])
            return {"objects": F.binary_cross_entropy(scores, wanted), "boxes": boxes.abs().mean()}
        return [self.detect(*each) for each in zip(x.flatten(2), scores, boxes, strict=True)]

    def detect(self, x, scores, boxes):
        scores, places = scores.topk(20)
        boxes = boxes[:, places].t()
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].abs()], 1)
        large = ((boxes[:, 2:] - boxes[:, :2]) > 0.1).all(1) & (scores > self.least)
        boxes, scores, places = boxes[large], scores[large], places[large]
        kept = suppressed(boxes, scores)
        found = F.relu(self.hidden(x[:, places[kept]].t()))
        chances = self.classes(found).view(len(kept), CLASSES).softmax(-1)
        return {"boxes": boxes[kept], "scores": scores[kept], "chances": chances}


def traced(model, example, **given):
    with pytest.warns(UserWarning, match="reads a value that depends on an input"):
        return prunus.trace(model.eval(), example, **given)


@pytest.mark.filterwarnings("ignore:traced in evaluation mode alone")
def test_a_detector_is_traced_whole_and_proved():
    torch.manual_seed(0)
    model, images = Detector(), [torch.rand(3, 16, 16)]
    graph = traced(model, (images,))
    assert set(graph.axes) == {"stem", "body", "hidden"}
    keep = random_keep(graph)
    small = prunus.shrink(model, graph, keep)
    assert prunus.surgery.verify(model, graph, keep, small).max_abs_error < 1e-5
    for images in ([torch.rand(3, 16, 16)], [torch.rand(3, 24, 16), torch.rand(3, 24, 16)]):
        for found in small(images):  # how many there are depends on the image
            assert {key: value.shape[1:] for key, value in found.items()} == {
                "boxes": (4,),
                "scores": (),
                "chances": (CLASSES,),
            }


@pytest.mark.filterwarnings("ignore:traced in evaluation mode alone")
def test_a_detector_that_finds_nothing_shrinks_but_proves_nothing():
    model, images = Detector(least=2.0), [torch.rand(3, 16, 16)]
    graph = traced(model, (images,))
    assert {"stem", "body", "hidden"} >= set(graph.axes) >= {"stem", "body"}
    with pytest.raises(PruningError, match="nothing is proved"):
        prunus.shrink(model, graph, random_keep(graph))
    small = prunus.shrink(model, graph, random_keep(graph), verify="off")
    assert [len(found["boxes"]) for found in small(images)] == [0]


class BoxHead(nn.Module):
    """A convolution, a norm and a layer for each box."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(12, 10, 1), nn.BatchNorm2d(10), nn.Linear(40, 14)

    def forward(self, x):
        x = x[:, :, None, None].expand(-1, -1, 2, 2)
        return self.linear(self.norm(self.conv(x)).relu().flatten(1))


@pytest.mark.filterwarnings("ignore:traced in evaluation mode alone")
def test_layers_behind_no_boxes_shrink_as_behind_some():
    torch.manual_seed(0)
    model, images = Detector(least=2.0), [torch.rand(3, 16, 16)]
    model.hidden = BoxHead()
    graph = traced(model, (images,))  # finds nothing
    assert {"hidden.conv", "hidden.linear"} <= set(graph.axes)
    keep = random_keep(graph)
    small = prunus.shrink(model, graph, keep, verify="off")
    model.least = small.least = 0.0
    assert prunus.surgery.verify(model, graph, keep, small).max_abs_error < 1e-5  # fails if nothing is found


class Table(nn.Module):
    """A layer whose code knows one width alone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 14)

    def forward(self, x):
        x = self.linear(x)
        return x * {14: 2.0}[x.shape[-1]]


@pytest.mark.filterwarnings("ignore:traced in evaluation mode alone")
def test_code_behind_data_that_knows_one_width_keeps_it():
    model, images = Detector(), [torch.rand(3, 16, 16)]
    model.hidden = Table()
    graph = traced(model, (images,))
    assert "stem" in graph.axes and "hidden.linear" not in graph.axes
    prunus.shrink(model, graph, random_keep(graph))


def test_a_detector_is_proved_in_training_with_targets():
    torch.manual_seed(0)
    model, images = Detector(), [torch.rand(3, 16, 16), torch.rand(3, 16, 16)]
    targets = [{"scores": torch.rand(64)} for _ in images]
    graph = traced(model, images, modes={"eval": (images,), "train": (images, targets)})
    assert set(graph.modes) == {"eval", "train"}
    keep = random_keep(graph)
    small = prunus.shrink(model, graph, keep)
    assert prunus.surgery.verify(model, graph, keep, small).modes == ("eval", "train")
    losses = small.train()(images, targets)
    sum(losses.values()).backward()
    assert small.stem.weight.grad is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_detectors_of_torchvision_are_traced_whole_and_proved(name):
    torchvision_models()
    from torchvision.models import detection  # behind the skip

    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None).eval()
    images = [torch.rand(3, 320, 320)]
    graph = prunus.trace(model, (images,))
    keep = {axis: range(0, units.size, 2) for axis, units in graph.axes.items()}
    small = prunus.shrink(model, graph, keep)
    left = [sum(map(torch.Tensor.numel, each.parameters())) for each in (small, model)]
    assert left[0] < 0.5 * left[1]
    (before,), (after,) = model(images), small(images)
    assert {key: t.shape[1:] for key, t in after.items()} == {key: t.shape[1:] for key, t in before.items()}
