"""Prune a detector: torchvision's RetinaNet on generated images of squares, through a task of one's own.

Detectors return their losses in training mode only, when they are called with the targets, and boxes in evaluation. So
`loss=None`, and a metric of the boxes judges. Run it with `python examples/detection.py`; it takes some seconds.
"""

import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

import prunus
from prunus.run import Settings

SIDE, OBJECT = 64, 20  # pixels, of an image and of the square in it


class Detector(nn.Module):
    """RetinaNet with a small backbone; targets come as tensors, boxes (B, N, 4) and labels (B, N)."""

    def __init__(self):
        super().__init__()
        widths, layers = [3, 16, 24, 32], []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        backbone = nn.Sequential(*layers)
        backbone.out_channels = widths[-1]
        anchors = AnchorGenerator(sizes=((OBJECT,),), aspect_ratios=((1.0,),))
        head = RetinaNetHead(widths[-1], num_anchors=1, num_classes=3, norm_layer=nn.BatchNorm2d)
        self.net = RetinaNet(backbone, 3, min_size=SIDE, max_size=SIDE, anchor_generator=anchors, head=head)

    def forward(self, images, targets=None):
        if targets is not None:
            targets = [{"boxes": b, "labels": n} for b, n in zip(*targets.values(), strict=True)]
        return self.net(list(images), targets)


def scenes(count: int, seed: int) -> list[dict]:
    """Make noisy images with a square each, red (1) or green (2)."""
    make = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        image = 0.3 * torch.rand(3, SIDE, SIDE, generator=make)
        left, top = torch.randint(SIDE - OBJECT, (2,), generator=make).tolist()
        label = int(torch.randint(1, 3, (), generator=make))
        image[label - 1, top : top + OBJECT, left : left + OBJECT] += 0.7
        boxes = torch.tensor([[left, top, left + OBJECT, top + OBJECT]], dtype=torch.float32)
        found.append({"images": image, "targets": {"boxes": boxes, "labels": torch.tensor([label])}})
    return found


def overlap(output: list[dict[str, Tensor]], targets: dict[str, Tensor]) -> Tensor:
    """Return the mean IoU of the likeliest boxes with the true ones; 0 where there is none, or another label."""
    found = []
    for boxes, true_box, true_label in zip(output, targets["boxes"], targets["labels"], strict=True):
        right = len(boxes["labels"]) and boxes["labels"][0] == true_label[0]
        found.append(box_iou(boxes["boxes"][:1], true_box)[0, 0] if right else torch.tensor(0.0))
    return torch.stack(found).mean()


def main() -> None:
    """Train, prune to half the multiply-adds, recover."""
    torch.manual_seed(0)
    task = prunus.Task(
        Detector(),
        train=DataLoader(scenes(96, seed=0), batch_size=8, shuffle=True),
        val=DataLoader(scenes(16, seed=1), batch_size=8),
        test=DataLoader(scenes(32, seed=2), batch_size=8),
        loss=None,
        metric=overlap,
        recipe={"lr": 3e-3},
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(method="magnitude", base_epochs=6, epochs=3)
        found = prunus.prune(task=task, out=Path(folder, "run"), settings=settings).values
    before, after = found["before"], found["after"]
    print(f"multiply-adds left: {after['macs'] / before['macs']:.0%}")
    print(f"proved in: {', '.join(found['verified']['modes'])}")
    print(f"overlap before and after: {before['overlap']:.2f} {after['overlap']:.2f}")


if __name__ == "__main__":
    main()
