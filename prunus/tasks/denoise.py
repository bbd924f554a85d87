"""Denoising: images freed of white Gaussian noise, judged by PSNR over the full range.

    prunus run --task denoise --sigma 25 --model zoo:dncnn --data parquet:train.parquet --out runs/denoise

The loss is the mean squared error. Sources: DnCNN, Zhang et al., TIP 2017, arXiv:1608.03981; settings of DHP, Li et
al., ECCV 2020, arXiv:2003.13683.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from prunus.data import Noise, Sigma
from prunus.tasks import _restoration
from prunus.tasks._contract import Given
from prunus.tasks._restoration import Restoration, load_given


@dataclass(frozen=True, kw_only=True)
class Options(_restoration.Options):
    """The options of denoising.

    Args:
        sigma: The standard deviation of the noise on the scale 0..255.
        patch: The side in pixels of the patches to train on.
        patches: The number of patches that an epoch takes from each image.
        test: The SPEC of other images to test on: imagefolder:DIR or parquet:FILE.
    """

    sigma: Sigma = 25.0


def make(given: Given, options: Options) -> "Denoising":
    """Make the task of denoising images; a model from a SPEC is built for gray or colour as the images are."""
    data = load_given(given, Noise(options.sigma), options)
    return Denoising(given.build_model(in_shape=tuple(data.example.shape[1:])), data)


class Denoising(Restoration):
    """Images (B, C, H, W) in 0..1 freed of noise, by a model that keeps their size.

    Args:
        model: The model; methods leave it unchanged.
        data: Pairs of noisy and clean images.
        recipe_fields: Fields that replace the advised ones in every recipe of this task.
    """

    epochs: ClassVar[dict[str, int]] = {"scratch": 60, "tune": 20, "recover": 20}
    batch_size = 64

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(output.float(), target)

    def shown(self, images: Tensor) -> Tensor:
        """Return the images as they are: all channels, the full range."""
        return images
