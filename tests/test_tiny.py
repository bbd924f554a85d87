"""The whole core once on one tiny network, in seconds: what a commit is checked with before it is made."""

import torch
import torch.nn.functional as F
from torch import nn

import prunus


class Tiny(nn.Module):
    """Two branches that are added, a norm, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.branch, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + F.relu(self.norm(self.branch(x)))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


def test_traced_scored_selected_shrunk_proved_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model, example = Tiny(), torch.randn(2, 1, 6, 6)
    graph = prunus.trace(model, example)
    assert sorted(axis.size for axis in graph.axes.values()) == [8, 16]  # the branches are one axis
    keep = prunus.select(graph, prunus.scores.magnitude(model, graph), prunus.Budget(macs=0.5))
    small = prunus.shrink(model, graph, keep)
    assert prunus.verify(model, graph, keep, small).holds
    assert prunus.macs(prunus.trace(small, example)) == prunus.macs(graph, keep) <= 0.5 * prunus.macs(graph)
    prunus.save(tmp_path, small, keep, graph)
    loaded = prunus.load(tmp_path, Tiny())
    assert torch.equal(loaded.eval()(example), small.eval()(example))
    assert torch.allclose(small(example), prunus.mask(model, graph, keep).eval()(example), atol=1e-5)
