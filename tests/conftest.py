"""What tests share: no network, and one finished run on the digits that several files look at."""

import os
from pathlib import Path

import pytest

# One thread: tests' networks are tiny, and where other programs keep the cores busy, threads that wait for each
# other make them a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """The folder of a short finished run: a small network, the digits, three epochs and two."""
    from prunus.run import Settings, prune
    from prunus.selection import Budget

    folder = tmp_path_factory.mktemp("runs") / "digits"
    settings = Settings(base_epochs=3, epochs=2)
    prune("zoo:digits_resnet", data="digits", budget=Budget(macs=0.5), out=folder, settings=settings)
    return folder


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits, as the program loads them."""
    from prunus.data import load_data

    return load_data("digits")
