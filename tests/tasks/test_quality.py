"""PSNR and SSIM against their formulas, scipy and torchmetrics, and on what the tasks judge of an answer."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from prunus.tasks import Denoising, SuperResolution
from prunus.tasks._quality import psnr, ssim
from tests.lib.models import imported_beside_torchvision


def pair(channels: int = 3, height: int = 30, width: int = 41) -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy versions of two images, 0..255."""
    generator = torch.Generator().manual_seed(channels)
    truth = torch.rand(2, channels, height, width, generator=generator, dtype=torch.float64) * 255
    noise = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    return (truth + torch.tensor([5.0, 40.0])[:, None, None, None] * noise).clamp(0, 255), truth


def scipys_ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """SSIM of one channel with scipy's Gaussian of radius 5, without the places where it meets the border."""

    def blurred(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    a, b = blurred(image), blurred(truth)
    va, vb, cov = blurred(image**2) - a**2, blurred(truth**2) - b**2, blurred(image * truth) - a * b
    c1, c2 = 2.55**2, 7.65**2
    return float(((2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (va + vb + c2))).mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_both_are_what_their_formulas_say(channels):
    image, truth = pair(channels)
    errors = [float(np.mean((a - b) ** 2)) for a, b in zip(image.numpy(), truth.numpy(), strict=True)]
    assert psnr(image, truth).tolist() == pytest.approx([10 * np.log10(255**2 / error) for error in errors])
    scipys = [
        np.mean([scipys_ssim(a, b) for a, b in zip(one, other, strict=True)])
        for one, other in zip(image.numpy(), truth.numpy(), strict=True)
    ]
    assert ssim(image, truth).tolist() == pytest.approx(scipys, abs=1e-12)
    assert psnr(truth, truth).tolist() == [100, 100] and ssim(truth, truth).tolist() == pytest.approx([1, 1])


def test_torchmetrics_agrees():
    theirs = imported_beside_torchvision("torchmetrics.functional.image")
    image, truth = pair()
    found = theirs.peak_signal_noise_ratio(image, truth, data_range=255.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(image, truth), found, atol=1e-5)
    _, full = theirs.structural_similarity_index_measure(
        image, truth, data_range=255.0, return_full_image=True
    )
    assert torch.allclose(ssim(image, truth), full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-9)


def test_super_resolution_is_judged_by_brightness_without_its_border():
    task = SuperResolution.__new__(SuperResolution)
    task.scale = 4
    image, truth = (x / 255 for x in pair())
    image[..., :4, :] = image[..., -4:] = 0  # in the border that is left out
    stored = [np.round(255 * x.numpy()[:, :, 4:-4, 4:-4]) for x in (image, truth)]
    y = [16 + (65.481 * x[:, 0] + 128.553 * x[:, 1] + 24.966 * x[:, 2]) / 255 for x in stored]
    wanted = [10 * np.log10(255**2 / np.mean((a - b) ** 2)) for a, b in zip(*y, strict=True)]
    assert task.judge(image, truth)["psnr"].tolist() == pytest.approx(wanted)
    ends = [float(task.shown(torch.full((1, 3, 9, 9), value))[0, 0, 0, 0]) for value in (0.0, 255.0)]
    assert ends == pytest.approx([16, 235])
    gray = torch.rand(1, 1, 20, 20)
    assert torch.equal(task.shown(gray), gray[..., 4:-4, 4:-4])


def test_denoising_is_judged_by_the_whole_image_as_a_file_holds_it():
    task = Denoising.__new__(Denoising)
    truth = torch.full((1, 1, 16, 16), 200 / 255)
    assert task.judge(truth + 0.4 / 255, truth)["psnr"].tolist() == [100]  # rounded away
    cut_off = 10 * np.log10(255**2 / 55**2)
    assert task.judge(truth + 9, truth)["psnr"].tolist() == pytest.approx([cut_off])
    one_row = truth.clone()
    one_row[..., 0, :] = 0
    wanted = 10 * np.log10(255**2 / (200**2 / 16))
    assert task.judge(one_row, truth)["psnr"].tolist() == pytest.approx([wanted])
