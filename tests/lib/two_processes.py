"""Training in two processes of torchrun, compared with the same training in one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from prunus.data import Data, Split
from prunus.data.images import Tensors
from prunus.files import read_tensors
from prunus.train import checkpoint

ROOT = str(Path(__file__).parents[2])
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SCRIPT = """
import sys
import torch
sys.path.insert(0, {root!r})
import {module}
{module}.{name}({folder!r})
torch.distributed.destroy_process_group()
"""


def image_items():
    """As data, a SPEC of which is tests.lib.two_processes:image_items."""
    torch.manual_seed(0)
    source = Tensors([(str(index), torch.randn(1, 8, 8)) for index in range(210)])
    whole = Split(source, np.arange(210) % 10, np.arange(210))
    train, val = whole.take(np.arange(200)), whole.take(np.arange(200, 210))  # batches of an even size
    example = source.read(np.arange(1), None)
    return Data("image items", 10, example, train, val, whole.take(np.arange(50)))


def launched(arguments: list[str]) -> None:
    """Run a program in two processes; it must end well. The test's own limit of time is its limit."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": ROOT}
    done = subprocess.run([*LAUNCH, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def assert_trains_as_one(train: Callable[[Path], None], folder: Path) -> None:
    """`train` a function of a test module that leaves a checkpoint in the folder it is given."""
    train(folder / "one")
    names = {"module": train.__module__, "name": train.__name__}
    script = folder / "script.py"
    script.write_text(SCRIPT.format(root=ROOT, folder=str(folder / "two"), **names))
    launched([str(script)])
    one, two = (read_tensors(folder / name / checkpoint.NAME) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor.float(), two[name].float(), atol=1e-5), name
