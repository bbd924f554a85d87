"""Prunus makes PyTorch networks smaller and faster by pruning, and proves every cut."""

from typing import TYPE_CHECKING, Any

from prunus import sparse as sparse
from prunus.export import load as load
from prunus.export import load_masks as load_masks
from prunus.export import save as save
from prunus.graph import Graph as Graph
from prunus.graph import part as part
from prunus.graph import trace as trace
from prunus.latency import latency_ms as latency_ms
from prunus.selection import Budget as Budget
from prunus.selection import Sparsity as Sparsity
from prunus.selection import macs as macs
from prunus.selection import memory_mb as memory_mb
from prunus.selection import params as params
from prunus.selection import plan as plan
from prunus.selection import select as select
from prunus.surgery import Proof as Proof
from prunus.surgery import carry_over as carry_over
from prunus.surgery import crop as crop
from prunus.surgery import mask as mask
from prunus.surgery import shrink as shrink
from prunus.surgery import verify as verify

if TYPE_CHECKING:
    from prunus.run import prune as prune

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "Graph",
    "Proof",
    "Sparsity",
    "carry_over",
    "crop",
    "latency",
    "latency_ms",
    "load",
    "load_masks",
    "macs",
    "mask",
    "memory_mb",
    "params",
    "part",
    "plan",
    "prune",
    "save",
    "scores",
    "select",
    "shrink",
    "sparse",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    # `prunus.run` imports the learning rooms; code that only shrinks does not have to wait for them
    if name == "prune":
        from prunus.run import prune as prune

        return prune
    raise AttributeError(f"module 'prunus' has no attribute {name!r}")
