"""How fast images are read: Prunus's split beside a plain DataLoader, and how long a folder of small files takes.

    python benchmarks/reading.py                      images per second at 224 pixels
    python benchmarks/reading.py --files 20000 200000     seconds and memory until a folder is loaded

Speed: generated JPEG files of 400x300 pixels are cut, resized to 224 and normalised, as in evaluation, by Prunus and by
a plain torch DataLoader with as many processes over the same decoding. Both take turns in random order; a round's ratio
compares neighbours in time alone, and the median over the rounds is stated. The goal is 0.95. Files: each folder is
loaded in a process of its own, which states seconds, seconds of processor time, and how much memory it has grown by.
Results: benchmarks/results/reading.json.
"""

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from prunus.data import load_data
from prunus.machine import cores, machine, versions

RESULTS = Path(__file__).parent / "results" / "reading.json"
BATCH, CLASSES = 64, 10
LOAD = """
import sys, time
from prunus.data import load_data
def grown(): return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024
before, began, worked = grown(), time.perf_counter(), time.process_time()
data = load_data("imagefolder:" + sys.argv[1])
print(time.perf_counter() - began, time.process_time() - worked, grown() - before)
"""


class Plain(Dataset):
    """The same images for a plain DataLoader, read by the same decoding one by one."""

    def __init__(self, files, labels, how):
        self.files, self.labels, self.how = files, labels, how

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.how.read(self.files[index])[0], self.labels[index]


def jpeg(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 3) as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_photos(folder: Path, count: int) -> Path:
    """Write photographs of 400x300 pixels: smooth noise, each another."""
    rng = np.random.default_rng(0)
    for index in range(count):
        place = folder / str(index % CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8))
        pixels = np.asarray(coarse.resize((400, 300), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
        (place / f"{index}.jpg").write_bytes(jpeg(noisy))
    return folder


def write_files(folder: Path, count: int) -> Path:
    """Write small JPEG files of 72x80 pixels, which differ by a comment."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 10, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    whole = jpeg(pixels)
    for number in range(CLASSES):
        (folder / str(number)).mkdir(parents=True)
    for index in range(count):
        comment = f"{index:08d}".encode()
        data = whole[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + whole[2:]
        (folder / str(index % CLASSES) / f"{index}.jpg").write_bytes(data)
    return folder


def seconds_of(batches) -> float:
    """How long it takes to read all batches."""
    began = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - began


def measure_speed(count: int, rounds: int, workers: int) -> dict:
    """Images per second of both, and the median of their ratio within rounds."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_photos(Path(place), count)
        data = load_data(f"imagefolder:{folder}", workers=workers)
        train, names = data.train, list(data.fingerprint.items)
        files = [folder / names[member] for member in train.members]
        plain = DataLoader(
            Plain(files, train.labels.tolist(), data.fingerprint.preprocessing),
            batch_size=BATCH,
            num_workers=workers,
            persistent_workers=True,
        )
        readers = {"prunus": lambda: train.batches(BATCH), "plain": lambda: plain}
        (ours, _), (theirs, _) = next(iter(train.batches(BATCH))), next(iter(plain))
        assert torch.equal(ours[: BATCH // 2], theirs[: BATCH // 2])  # batches differ in size by one or two
        for reader in readers.values():
            seconds_of(reader())  # starts the processes
        taken: dict[str, list[float]] = {name: [] for name in readers}
        for number in range(rounds):
            for name in random.Random(number).sample(list(readers), len(readers)):
                taken[name].append(seconds_of(readers[name]()))
    ratios = [plain_s / own_s for own_s, plain_s in zip(taken["prunus"], taken["plain"], strict=True)]
    speeds = {name: len(train) / statistics.median(values) for name, values in taken.items()}
    return {"images": len(train), "workers": workers, "rounds": rounds, "images_per_second": speeds} | {
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
    }


def measure_files(count: int) -> dict:
    """Seconds, processor seconds and MB until a folder of small files is loaded; the files have just been written."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_files(Path(place) / "files", count)
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=True
        )
    seconds, worked, grown = map(float, done.stdout.split())
    return {"files": count, "seconds": seconds, "processor_seconds": worked, "grown_mb": grown}


def main() -> None:
    """Measure what is asked for, print it, and store it with the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--files", type=int, nargs="*")
    asked = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    busy = {"load_average_before": os.getloadavg()[0]}
    if asked.files is None:
        found["speed"] = busy | measure_speed(asked.images, asked.rounds, asked.workers)
    else:
        found["files"] = [busy | measure_files(count) for count in asked.files]
    found |= {"machine": machine(torch.device("cpu"), 1), "versions": versions()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
