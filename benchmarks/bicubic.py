"""Super-resolution without a network: images made larger bicubically, for comparison with the figures of papers.

    python benchmarks/bicubic.py [--data ../shared/data/restoration] [--scale 4]

Prints PSNR in dB and SSIM on Set5 and Set14, as `--task sr` judges a network. A check of downscaling, brightness,
borders and metrics together.
"""

import argparse
from pathlib import Path

from torch import Tensor, nn

from prunus.data import Downscaling, Patches, load_pairs
from prunus.tasks import SuperResolution


class Bicubic(nn.Module):
    """Enlarges images as the task does, without a weight that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(1, 1, 1)  # the task asks a parameter for its device
        self.enlarge = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.enlarge(x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/restoration")
    parser.add_argument("--scale", type=int, default=4)
    asked = parser.parse_args()
    for name in ("set5", "set14"):
        train, test = (f"parquet:{asked.data / each}.parquet" for each in ("bsds_val", name))
        data = load_pairs(train, Downscaling(asked.scale), Patches(side=24 * asked.scale, each=1), test=test)
        model = Bicubic()
        task = SuperResolution(model, data, scale=asked.scale)
        model.enlarge = task.enlarged
        print(name, {key: round(value, 4) for key, value in task.evaluate(model, data.test).items()})


if __name__ == "__main__":
    main()
