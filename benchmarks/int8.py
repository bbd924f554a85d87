"""Does a pruned network stand 8 bits as well as the dense one? python benchmarks/int8.py [--seeds 3]

A small convolutional network learns scikit-learn's digits in 8 epochs; a copy is pruned to half of the multiply-adds by
Taylor scores. Both are trained for 6 more epochs, on the same batches, exported to ONNX, and quantised by
`prunus.export.export_int8` on 256 training images. Accuracies are of onnxruntime on 360 test images that neither
training nor quantisation saw, sizes are of the files. Goes to benchmarks/results/int8.json.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunus
from prunus.export import export_int8, export_model, feed_of, open_session
from prunus.machine import machine, versions

RESULT = Path(__file__).parent / "results" / "int8.json"


def network() -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """Train with SGD, the learning rate falling to zero; returns the model in evaluation mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def measured(folder: Path, model: nn.Module, calibration: Tensor, x: Tensor, y: Tensor) -> dict[str, dict]:
    """The accuracy and the size of a model in both precisions."""
    export_model(folder, model, x[:1])
    export_int8(folder, model, x[:1], calibration.split(32))
    rows = {}
    for bits, name in (("float32", "model.onnx"), ("int8", "model.int8.onnx")):
        session = open_session((folder / name).read_bytes())
        got = torch.from_numpy(session.run(None, feed_of(session, x))[0])
        rows[bits] = {
            "accuracy": (got.argmax(1) == y).float().mean().item(),
            "file_kb": (folder / name).stat().st_size / 1e3,
        }
    return rows


def run(seed: int) -> dict[str, dict]:
    """Dense and pruned, of one seed."""
    torch.manual_seed(seed)
    digits = load_digits()
    x, y = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    (x, test_x), (y, test_y) = x.split([1437, 360]), y.split([1437, 360])
    model = train(network(), x, y, 8)
    graph = prunus.trace(model, x[:1])
    batches = zip(x.split(64), y.split(64), strict=True)
    scores = prunus.scores.taylor(model, graph, F.cross_entropy, batches)
    small = prunus.shrink(model, graph, prunus.select(graph, scores, prunus.Budget(macs=0.5)))
    rows = {}
    for name, each in (("dense", model), ("pruned", small)):
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measured(Path(folder), train(each, x, y, 6), x[:256], test_x, test_y)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    runs = [run(seed) for seed in range(parser.parse_args().seeds)]
    record: dict = {"runs": runs, "versions": versions(), "machine": machine(torch.device("cpu"), 1)}
    record["machine"]["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    for name in ("dense", "pruned"):
        for bits in ("float32", "int8"):
            rows = [each[name][bits] for each in runs]
            accuracies = [row["accuracy"] for row in rows]
            size = statistics.mean(row["file_kb"] for row in rows)
            spread = f"{min(accuracies):.1%} to {max(accuracies):.1%}"
            print(f"{name:8}{bits:9}{statistics.mean(accuracies):.1%} ({spread}) {size:.0f} kB")
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
