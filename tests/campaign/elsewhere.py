"""The tests that take small networks through the whole core, with other interpreters and other versions of torch.

    python -m tests.campaign.elsewhere PYTHON [PYTHON ...] [--record FILE]

PYTHON is the interpreter of an environment that has Prunus's dependencies, pytest and hypothesis, but not Prunus: it
imports this copy. Prints a line for each. Started again with the same record, it goes on with those that are missing.
"""

import argparse
import json
import os
import subprocess
import sys

from tests.campaign.record import ROOT, CampaignRecord, Case, add_option

TESTS = (
    "tests/test_tiny.py",
    "tests/export",
    "tests/surgery/test_proof.py",
    "tests/selection/test_selection.py",
)
VERSIONS = "import json; from prunus.machine import versions; print(json.dumps(versions()))"


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter in the root of this copy."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([python, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def try_tests(python: str) -> Case:
    """Run the tests with an interpreter."""
    done = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    lines = done.stdout.splitlines() or [done.stderr]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": lines[-1], "wrong": failed or bool(done.returncode)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", nargs="+")
    add_option(parser)
    asked = parser.parse_args()
    record = CampaignRecord(asked.record)
    record.note_circumstances()
    cases = []
    for python in asked.python:
        found = json.loads(run(python, "-c", VERSIONS).stdout)
        name = f"Python {found['python']}, torch {found['torch']}"
        cases.append(record.once("elsewhere", name, lambda python=python: try_tests(python)))
        print(cases[-1], flush=True)
    sys.exit(any(case["wrong"] for case in cases))


if __name__ == "__main__":
    main()
