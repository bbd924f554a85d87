"""Super-resolution: images made larger again, judged by PSNR of their brightness.

    prunus run --task sr --scale 4 --model zoo:edsr_baseline_x4 --data imagefolder:photos --out runs/sr

The loss is the mean absolute error. Images are downscaled bicubically with antialiasing. Colour images are judged by Y
of ITU-R BT.601 (16..235), and as many pixels as the scale are left out at each border. Sources: SRResNet, Ledig et al.,
CVPR 2017, arXiv:1609.04802; EDSR, Lim et al., CVPRW 2017, arXiv:1707.02921; settings of DHP, Li et al., ECCV 2020,
arXiv:2003.13683.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data import Data, Downscaling, Scale, resize
from prunus.options import Pixels
from prunus.tasks import _restoration
from prunus.tasks._contract import Given
from prunus.tasks._restoration import Restoration, as_stored, load_given

LUMA = (65.481, 128.553, 24.966)  # of R, G and B in 0..1, after which 16 is added; ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Options(_restoration.Options):
    """The options of super-resolution.

    Args:
        scale: How many times longer the sides become.
        patch: The side in pixels of the clean patches to train on, a multiple of the scale.
        patches: The number of patches that an epoch takes from each image.
        test: The SPEC of other images to test on: imagefolder:DIR or parquet:FILE.
    """

    scale: Scale = 4
    patch: Pixels = 96


def make(given: Given, options: Options) -> "SuperResolution":
    """Make the task of super-resolution; a model from a SPEC is built for gray or colour as the images are."""
    data = load_given(given, Downscaling(options.scale), options)
    model = given.build_model(in_shape=tuple(data.example.shape[1:]), scale=options.scale)
    return SuperResolution(model, data, scale=options.scale)


class SuperResolution(Restoration):
    """Images (B, C, H, W) in 0..1 enlarged to (B, C, scale * H, scale * W).

    Args:
        model: The model; methods leave it unchanged.
        data: Pairs of downscaled and original images.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
        scale: How many times longer the sides become.
    """

    epochs: ClassVar[dict[str, int]] = {"scratch": 300, "tune": 100, "recover": 100}
    batch_size = 16

    def __init__(
        self, model: nn.Module, data: Data, recipe_fields: dict[str, Any] | None = None, *, scale: int
    ):
        super().__init__(model, data, recipe_fields)
        self.scale = scale

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the mean absolute error."""
        return F.l1_loss(output.float(), target)

    def shown(self, images: Tensor) -> Tensor:
        """Return the brightness of colour images, gray ones as they are, without `scale` pixels at each border."""
        images = images[..., self.scale : -self.scale, self.scale : -self.scale]
        if images.shape[1] != len(LUMA):
            return images
        return 16 + torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA) / 255)[:, None]

    def enlarged(self, x: Tensor) -> Tensor:
        """Return an image (1, C, H, W) enlarged bicubically."""
        pixels = as_stored(x)[0].permute(1, 2, 0).cpu().numpy()
        height, width = pixels.shape[:2]
        larger = torch.from_numpy(resize(pixels, self.scale * height, self.scale * width) / 255)
        return larger.permute(2, 0, 1)[None].to(x)

    def asked_of_model(self) -> dict[str, Any]:
        """Return the images' shape (C, H, W), and the scale."""
        return super().asked_of_model() | {"scale": self.scale}
