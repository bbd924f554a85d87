"""Every fault of faults.py is noticed by its tests: each is made in a copy of the package, where the tests run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.faults import FAULTS

ROOT = Path(__file__).parents[2]
FAILED = 1  # pytest's exit status if a test failed; other ones are errors of its own


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_noticed(fault, tmp_path):
    for folder in ("prunus", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # the settings of pytest
    file = tmp_path / "prunus" / fault.file
    source = file.read_text()
    assert source.count(fault.old) == 1, f"{fault.file} has changed; find the place of this fault again"
    file.write_text(source.replace(fault.old, fault.new))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *fault.tests.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == FAILED, f"no test notices it:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
