"""What boards share: rows kept in a file after every run, so that a killed board goes on where it was."""

import json
import os
import platform
from pathlib import Path

import torch

import prunus
from prunus.files import write_json


class Board:
    """The rows of one board, in `path`, all made with the same `setup`."""

    def __init__(self, path: Path, setup: dict):
        self.path, self.setup, self.rows = path, json.loads(json.dumps(setup)), []
        if path.exists():
            held = json.loads(path.read_text())
            if held["setup"] != self.setup:
                raise SystemExit(f"{path} holds another setup, {held['setup']}; move it away first.")
            self.rows = held["rows"]

    def has(self, **of: object) -> bool:
        """Whether there is a row of these values."""
        return any(all(row.get(key) == value for key, value in of.items()) for row in self.rows)

    def add(self, row: dict) -> None:
        """Keep a row."""
        self.rows.append(row)
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "prunus": prunus.__version__,
        }
        machine = {"cores": os.cpu_count(), "machine": platform.machine()}
        write_json(
            self.path, {"setup": self.setup, "versions": versions, "machine": machine, "rows": self.rows}
        )
        print(json.dumps(row), flush=True)
