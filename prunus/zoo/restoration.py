"""Networks from images to images: super-resolution and denoising, in the sizes of DHP's experiments, and segmentation.

Sources: SRResNet, Ledig et al., CVPR 2017, arXiv:1609.04802; EDSR, Lim et al., CVPRW 2017, arXiv:1707.02921; DnCNN,
Zhang et al., TIP 2017, arXiv:1608.03981; UNet, Ronneberger et al., MICCAI 2015, arXiv:1505.04597. Sizes: DHP, Li et
al., ECCV 2020, arXiv:2003.13683, table 3. Multiply-adds of convolutions for a 128x128 image:

    srresnet_x4         RGB     1,535,638 parameters    32,719 M
    edsr_x4             RGB     3,696,643 parameters    90,352 M
    edsr_baseline_x4    RGB     1,517,571 parameters    32,492 M
    dncnn               gray      556,097 parameters     9,079 M
    unet                gray    7,762,465 parameters     3,008 M

    unet_segmenter      RGB       483,077 parameters       585 M    for 21 classes; ours: depth 4, width 16

DHP's counts are larger by what norms and activations add, and for UNet by transposed convolutions, which it counts for
every output pixel (four times).

Shapes: images (B, in_width, H, W); output (B, in_width, scale * H, scale * W), with scale 1 for denoising.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, with norms or without, and a shortcut."""

    def __init__(self, width: int, activation: Callable[[], nn.Module], norm: bool):
        super().__init__()
        norms = [nn.BatchNorm2d(width) if norm else nn.Identity() for _ in range(2)]
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            norms[0],
            activation(),
            nn.Conv2d(width, width, 3, padding=1),
            norms[1],
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def upsampler(width: int, scale: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Build the steps of twice (or of three times) the side, each a convolution and a pixel shuffle."""
    layers: list[nn.Module] = []
    for factor in [3] if scale == 3 else [2] * (scale.bit_length() - 1):
        layers += [nn.Conv2d(width, factor**2 * width, 3, padding=1), nn.PixelShuffle(factor), activation()]
    return nn.Sequential(*layers)


class SuperResolution(nn.Module):
    """A head, residual blocks with a shortcut around all of them, and an upsampler.

    Args:
        in_width: The channels of the image.
        scale: 2, 3 or 4.
        blocks: The number of residual blocks.
        width: The channels of each.
        head: The side of the first convolution's kernel.
        norm: Whether batch norms follow the convolutions.
        activation: Makes an activation for the blocks.
        outer: Makes an activation for head and upsampler.
    """

    def __init__(
        self,
        in_width: int,
        scale: int,
        *,
        blocks: int,
        width: int,
        head: int,
        norm: bool,
        activation: Callable[[], nn.Module],
        outer: Callable[[], nn.Module],
    ):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(in_width, width, head, padding=head // 2), outer())
        self.body = nn.Sequential(
            *(ResidualBlock(width, activation, norm) for _ in range(blocks)),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
        )
        self.upsampler = upsampler(width, scale, outer)
        self.tail = nn.Conv2d(width, in_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(self.upsampler(x + self.body(x)))


def srresnet(scale: int, in_width: int) -> SuperResolution:
    """Build SRResNet: 16 blocks of width 64, with norms and parametric ReLUs."""
    return SuperResolution(
        in_width, scale, blocks=16, width=64, head=9, norm=True, activation=nn.PReLU, outer=nn.PReLU
    )


def edsr(scale: int, in_width: int, *, blocks: int = 8, width: int = 128) -> SuperResolution:
    """Build EDSR, without norms; by default with the 8 blocks of width 128 of DHP."""
    return SuperResolution(
        in_width, scale, blocks=blocks, width=width, head=3, norm=False, activation=nn.ReLU, outer=nn.Identity
    )


class DnCNN(nn.Module):
    """A convolution, 15 more with norms, and one to the noise, which is subtracted from the image.

    Args:
        in_width: The channels of the image.
        layers: The number of convolutions with norms.
        width: Their channels.
    """

    def __init__(self, in_width: int, *, layers: int = 15, width: int = 64):
        super().__init__()
        inner = [
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(layers)
        ]
        self.head = nn.Sequential(nn.Conv2d(in_width, width, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(*inner)
        self.tail = nn.Conv2d(width, in_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.tail(self.body(self.head(x)))


def pair(in_width: int, width: int) -> nn.Sequential:
    """Build two 3x3 convolutions, each with a norm and a ReLU."""
    layers: list[nn.Module] = []
    for before in (in_width, width):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Pairs of convolutions on ever smaller images, and back by transposed convolutions, joined with those before.

    Images of any size are read; their borders are continued to a multiple of 2 ** (depth - 1).

    Args:
        in_width: The channels of the image.
        out_width: The channels of the answer, such as classes; None: those of the image, from which the answer is
            subtracted as in DnCNN (ours).
        depth: The number of sizes.
        width: The channels at full size; they double with each smaller one.
    """

    def __init__(self, in_width: int, out_width: int | None = None, *, depth: int = 5, width: int = 32):
        super().__init__()
        self.subtracts = out_width is None
        widths = [width * 2**i for i in range(depth)]
        self.down = nn.ModuleList(map(pair, [in_width, *widths[:-1]], widths))
        self.pool = nn.MaxPool2d(2)
        wider, narrower = widths[:0:-1], widths[-2::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in zip(wider, narrower, strict=True)
        )
        self.joined = nn.ModuleList(pair(2 * b, b) for b in narrower)
        self.tail = nn.Conv2d(width, out_width or in_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        step = 2 ** (len(self.down) - 1)
        y = nn.functional.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
        carried: list[Tensor] = []
        for number, block in enumerate(self.down):
            y = block(self.pool(y) if number else y)
            carried.append(y)
        for up, block, before in zip(self.up, self.joined, carried[-2::-1], strict=True):
            y = block(torch.cat([before, up(y)], 1))
        answer = self.tail(y)[..., :height, :width]
        return x - answer if self.subtracts else answer


def unet_segmenter(classes: int, in_width: int) -> UNet:
    """Build a small UNet with a logit for each class and pixel: four sizes, 16 channels at full size."""
    return UNet(in_width, classes, depth=4, width=16)
