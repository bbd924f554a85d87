"""The plan of a cut: what a keep would change in every tensor and operator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunus.graph import Graph
from prunus.selection import cost
from prunus.selection.budget import short


@dataclass(frozen=True)
class Plan:
    """What a keep would change. axes: name -> (units before, after); costs: name -> (before, after)."""

    axes: dict[str, tuple[int, int]]
    costs: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        rows = [("axis", "before", "after", "kept")]
        rows += [(name, str(old), str(new), f"{new / old:.1%}") for name, (old, new) in self.axes.items()]
        rows += [
            (name, short(old), short(new), f"{new / old:.1%}") for name, (old, new) in self.costs.items()
        ]
        wide = max(len(name) for name, *_ in rows)
        return "\n".join(f"{name:<{wide}} {old:>10} {new:>10} {share:>8}" for name, old, new, share in rows)


def plan(graph: Graph, keep: Mapping[str, Sequence[int]]) -> Plan:
    """The table of widths and costs before and after; changes nothing. Raises UserError if `keep` does not fit."""
    sizes, widths = graph.widths(), graph.widths(keep)
    costs = {
        name: (cost.of(graph, name, sizes), cost.of(graph, name, widths))
        for name in ("macs", "params", "memory_mb")
    }
    return Plan({name: (sizes[name], widths[name]) for name in sizes}, costs)
