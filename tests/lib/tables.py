"""Small generated tables: rows of numbers or of images, with numbers or labels to predict."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

LABELS = ("dark", "red", "wide")


def numbers(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of four columns, a target that depends on them in metres around 100, and labels that do too."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        a, b, c, d = rng.normal(size=4)
        found.append({
            "name": f"row {number}", "a": a, "b": 1000 * b, "c": c, "constant": 5, "d": int(10 * d),
            "height": 100 + 8 * a - 5 * b + 2 * a * c + 0.5 * rng.normal(), "depth": 3 * b + d,
            "warm": int(a + c > 0), "wet": int(b > 0.3),
        })  # fmt: skip
    return found


def pictures(folder: Path, rows: int, side: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of images below `folder`, each with its brightness and with labels, of which there may be none."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        image = rng.integers(0, 40, (side, side, 3)) + rng.integers(0, 120)
        red, wide = rng.random(2) < 0.5
        if red:
            image[..., 0] += 90
        if wide:
            image[side // 3 : side // 2] = 0
        path = f"photos/{number}.png"
        Image.fromarray(image.astype(np.uint8)).save(folder / path)
        labels = [name for name, there in zip(LABELS, (image.mean() < 60, red, wide), strict=True) if there]
        found.append({"file": path, "brightness": float(image.mean()), "labels": labels})
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the kind of table that the suffix says; lists are joined by semicolons in CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({key: ";".join(v) if isinstance(v, list) else v for key, v in row.items()})
    return path
