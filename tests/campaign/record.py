"""The record of a campaign: a line of JSON for each case, added when the case has ended.

A campaign that is started again with the same record goes on where it was stopped: a case that the record holds is not
tried again. benchmarks/reliability_page.py writes docs/reliability.md from it.
"""

import json
import subprocess
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prunus.machine import machine, versions

ROOT = Path(__file__).parents[2]

Case = dict[str, Any]


class CampaignRecord:
    """Cases of a campaign, in memory or also in a file.

    Args:
        path: The file, which is made if it is not there; None: memory alone.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path is not None and path.exists() else []
        self.cases: list[Case] = [
            json.loads(line) for line in lines if line.endswith("\n")
        ]  # one may be torn
        if self.cases and not lines[-1].endswith("\n"):
            path.write_text("".join(lines[:-1]))

    def of(self, kind: str) -> list[Case]:
        """Return the cases of a kind, in the order in which they ended."""
        return [case for case in self.cases if case["kind"] == kind]

    def once(self, kind: str, name: object, make: Callable[[], Case]) -> Case:
        """Return the case of a kind and a name, which is made unless it is there."""
        for case in self.of(kind):
            if case["name"] == name:
                return case
        case = {"kind": kind, "name": name, **make()}
        self.cases.append(case)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(case) + "\n")
        return case

    def note_circumstances(self) -> None:
        """Add the commit, the versions and the machine of the cases that follow, once for each commit."""
        told = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        commit = subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()
        made_by = {"versions": versions(), "machine": machine(torch.device("cpu"), 1)}
        self.once("circumstances", commit, lambda: made_by)


def add_option(parser: ArgumentParser) -> None:
    """Add the option that names the record."""
    parser.add_argument(
        "--record", type=Path, help="a file of cases that are not tried again, to which new ones are added"
    )
