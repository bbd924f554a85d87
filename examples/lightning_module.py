"""Prune a network while Lightning trains it.

A small convolutional network learns scikit-learn's digits; at two steps of its training channels go, until half of the
multiply-adds are left. Nothing is downloaded; needs the package `lightning` (`pip install lightning`). Run it with
`python examples/lightning_module.py`.
"""

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus

CUTS = {60: 0.75, 100: 0.5}  # after so many steps: the share of multiply-adds that may be left


class Digits(lightning.LightningModule):
    """An ordinary LightningModule; Prunus has no part in it."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        """The loss of a batch."""
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        """SGD with momentum, its learning rate falling to zero."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    """Train, and prune meanwhile."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    (x, test_x), (y, test_y) = x.split([1437, 360]), y.split([1437, 360])
    module = Digits()

    # Plan: an example of the network's input, and a budget for each cut; then train as ever.
    limits = {step: prunus.Budget(macs=share) for step, share in CUTS.items()}
    gradual = prunus.Gradual(x[:1], limits)
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[prunus.lightning_callback(gradual, "network")],
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True))

    network = module.network.eval()
    with torch.no_grad():
        reached = (network(test_x).argmax(1) == test_y).float().mean().item()
    for cut in gradual.cuts:
        print(f"after step {cut.step}: {cut.units} units removed, multiply-adds left {cut.macs_share:.0%}")
    print(f"accuracy: {reached:.1%}")


if __name__ == "__main__":
    main()
