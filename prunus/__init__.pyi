import pathlib
import typing

import torch

from . import latency as latency
from . import scores as scores
from . import sparse as sparse
from . import testing as testing
from .export import check_config as check_config
from .export import load_masks as load_masks
from .export import save as save
from .export import shrink_checkpoint as shrink_checkpoint
from .graph import Graph as Graph
from .graph import part as part
from .graph import rule as rule
from .graph import trace as trace
from .latency import latency_ms as latency_ms
from .refit import repair as repair
from .run import Comparison as Comparison
from .run import Gradual as Gradual
from .run import Saved as Saved
from .run import compare as compare
from .run import lightning_callback as lightning_callback
from .run import prune as prune
from .run import trainer_callback as trainer_callback
from .selection import Budget as Budget
from .selection import Sparsity as Sparsity
from .selection import cache_mb as cache_mb
from .selection import macs as macs
from .selection import memory_mb as memory_mb
from .selection import params as params
from .selection import plan as plan
from .selection import select as select
from .selection import weights_mb as weights_mb
from .surgery import Proof as Proof
from .surgery import carry_over as carry_over
from .surgery import crop as crop
from .surgery import mask as mask
from .surgery import shrink as shrink
from .surgery import shrink_in_place as shrink_in_place
from .surgery import verify as verify
from .tasks._own import Task as Task

__version__: str
__all__ = [
    "Budget",
    "Comparison",
    "Gradual",
    "Graph",
    "Proof",
    "Saved",
    "Sparsity",
    "Task",
    "cache_mb",
    "carry_over",
    "check_config",
    "compare",
    "crop",
    "latency",
    "latency_ms",
    "lightning_callback",
    "load",
    "load_masks",
    "macs",
    "mask",
    "memory_mb",
    "params",
    "part",
    "plan",
    "prune",
    "repair",
    "rule",
    "save",
    "scores",
    "select",
    "shrink",
    "shrink_in_place",
    "sparse",
    "testing",
    "trace",
    "trainer_callback",
    "verify",
    "weights_mb",
]

@typing.overload
def load(folder: str | pathlib.Path) -> Saved: ...
@typing.overload
def load(folder: str | pathlib.Path, model: torch.nn.Module) -> torch.nn.Module: ...
