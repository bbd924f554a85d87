"""Prune a network in the middle of your own training loop, in plain PyTorch.

Trains a small convolutional network on scikit-learn's digits, removes half of its multiply-adds, and trains on with the
same optimiser. Nothing is downloaded. Run it with `python examples/own_loop.py`.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunus


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epochs: int) -> None:
    """An ordinary training loop; Prunus has no part in it."""
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images whose class is predicted correctly."""
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def main() -> None:
    """Train, prune, train on."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    (x, test_x), (y, test_y) = x.split([1437, 360]), y.split([1437, 360])
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    train(model, optimizer, x, y, epochs=6)

    # 1. Trace: one pass on abstract tensors finds the axes, that is, which channels must shrink together.
    graph = prunus.trace(model, x[:1])
    # 2. Score: one number per channel, from the gradients of your own loss; higher means keep.
    model.eval()
    batches = zip(x.split(64), y.split(64), strict=True)
    scores = prunus.scores.taylor(model, graph, F.cross_entropy, batches)
    # 3. Select: the channels to keep, so that at most half of the multiply-adds is left.
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.5))
    # 4. Shrink: an ordinary, smaller module. It is proved equal to the original with the other channels at zero.
    small = prunus.shrink(model, graph, keep)
    # 5. Carry the optimiser over: its momentum is cut with the same indices, so training goes on smoothly.
    optimizer, _ = prunus.carry_over(graph, keep, model, small, optimizer=optimizer)
    accuracies = [accuracy(model, test_x, test_y), accuracy(small, test_x, test_y)]
    train(small, optimizer, x, y, epochs=3)
    accuracies.append(accuracy(small, test_x, test_y))

    print(f"multiply-adds left: {prunus.macs(graph, keep) / prunus.macs(graph):.0%}")
    print("accuracy before, after the cut, after three more epochs:", *(f"{a:.1%}" for a in accuracies))


if __name__ == "__main__":
    main()
