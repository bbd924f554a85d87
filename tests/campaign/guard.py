"""Make every fault of faults.py in a copy of the package, and see whether its test notices it.

    python -m tests.campaign.guard [--record FILE]

Prints a line for each fault. Started again with the same record, it goes on with the faults that are missing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.campaign.faults import FAULTS, Fault
from tests.campaign.record import ROOT, CampaignRecord, Case, add_option

PASSED, FAILED = (
    0,
    1,
)  # pytest's exit statuses; other ones are errors of its own, such as a test that is not there


def run_tests(folder: Path, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Run tests of the package in a folder, until the first fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def try_fault(fault: Fault, folder: Path) -> Case:
    """Make a fault in a copy of the package.

    Args:
        fault: The fault.
        folder: An empty folder, for the copy.

    Returns:
        What is wrong, in words; empty if the fault's test fails, as it should.
    """
    for part in ("prunus", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # the settings of pytest
    file = folder / "prunus" / fault.file
    source = file.read_text()
    if source.count(fault.old) != 1:
        return {"wrong": f"{fault.file} has changed; find the place of this fault again"}
    file.write_text(source.replace(fault.old, fault.new))
    done = run_tests(folder, [fault.test])
    words = f"{fault.test} does not notice it:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return {"wrong": "" if done.returncode == FAILED else words}


def try_without_faults() -> Case:
    """Run the tests of all faults in the package as it is; they must pass."""
    done = run_tests(ROOT, sorted({fault.test for fault in FAULTS}))
    return {"wrong": "" if done.returncode == PASSED else f"{done.stdout[-2000:]}{done.stderr[-2000:]}"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_option(parser)
    record = CampaignRecord(parser.parse_args().record)
    record.note_circumstances()
    cases = [record.once("fault", "none", try_without_faults)]
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as place:
            cases.append(
                record.once(
                    "fault", fault.name, lambda fault=fault, place=place: try_fault(fault, Path(place))
                )
            )
        print(cases[-1], flush=True)
    wrong = [case for case in cases if case["wrong"]]
    print(f"{len(FAULTS)} faults, {len(wrong)} not noticed")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
