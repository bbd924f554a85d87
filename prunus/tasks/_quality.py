"""How like two images are: PSNR, and SSIM with the window of its authors.

Source of SSIM: Wang et al., IEEE TIP 2004; constants, Gaussian window, and the mean over the places at which the whole
window lies inside the image are theirs, as in the tables of papers. torchmetrics' PSNR is the same; its SSIM continues
images beyond their borders, which changes it in the third digit. It is not imported: it imports torchvision, and fails
with it where that does not fit torch.
"""

import torch
from torch import Tensor

PEAK = 255.0  # the range of the images
MOST_DB = 100.0  # the PSNR of equal images, which would be infinite
WINDOW, SIGMA = 11, 1.5  # pixels
K1, K2 = 0.01, 0.03


def psnr(image: Tensor, truth: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB, at most 100, of images (B, C, H, W) on the scale 0..255: (B,)."""
    error = (image - truth).square().mean((1, 2, 3))
    return (10 * torch.log10(PEAK**2 / error)).clamp(max=MOST_DB)


def ssim(image: Tensor, truth: Tensor) -> Tensor:
    """Compute the structural similarity of images (B, C, H, W) on the scale 0..255, of at least 11x11 pixels: (B,)."""
    mean, true_mean = blurred(image), blurred(truth)
    variance = blurred(image.square()) - mean.square()
    true_variance = blurred(truth.square()) - true_mean.square()
    covariance = blurred(image * truth) - mean * true_mean
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    brightness = (2 * mean * true_mean + c1) / (mean.square() + true_mean.square() + c1)
    structure = (2 * covariance + c2) / (variance + true_variance + c2)
    return (brightness * structure).mean((1, 2, 3))


def blurred(images: Tensor) -> Tensor:
    """Take the weighted mean around each pixel whose window lies inside the image."""
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    shares = (weights / weights.sum()).tolist()
    for dim in (-1, -2):  # sums of shifted images are faster than convolutions in double precision
        inside = images.shape[dim] - WINDOW + 1
        parts = [share * images.narrow(dim, at, inside) for at, share in enumerate(shares)]
        images = sum(parts[1:], parts[0])
    return images
