"""Traces and proofs in several threads, and models that run in another thread meanwhile."""

import threading

import pytest
import torch
from torch import nn

import prunus

WAIT = 0.3  # seconds that a second thread gets to disturb the first, if nothing holds it back


MEANWHILE = {}  # name of a network -> what happens in the middle of its forward pass


class Net(nn.Module):
    """Two layers and dropout, and in between something that happens meanwhile."""

    def __init__(self, name):
        super().__init__()
        self.a, self.b, self.name = nn.Linear(4, 8), nn.Linear(8, 3), name

    def forward(self, x):
        x = self.a(x)
        MEANWHILE.get(self.name, int)()
        return self.b(torch.dropout(x.relu(), 0.5, self.training))


class Modeless(Net):
    """The same without a question for the mode."""

    def forward(self, x):
        x = self.a(x)
        MEANWHILE.get(self.name, int)()
        return self.b(x.relu())


X = torch.randn(2, 4)


class Second:
    """A trace in a second thread, begun by the first call; each call waits a little, so that it could disturb."""

    def __init__(self):
        self.inside, self.errors = threading.Event(), []
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            prunus.trace(Net("second"), X)
        except Exception as error:
            self.errors.append(error)

    def __call__(self):
        if not self.thread.ident:
            self.thread.start()
        self.inside.wait(WAIT)

    def finish(self):
        self.thread.join()
        assert not self.errors and self.inside.is_set()


@pytest.fixture
def second():
    MEANWHILE["second"] = (made := Second()).inside.set
    yield made
    MEANWHILE.clear()


def test_a_trace_is_not_disturbed_by_one_in_another_thread(second):
    MEANWHILE["first"] = second
    graph = prunus.trace(Net("first"), X)
    second.finish()
    assert list(graph.axes) == ["a"] and graph.traced == ("eval", "train")
    assert "training" not in vars(nn.Module)


def test_a_proof_is_not_disturbed_by_a_trace_in_another_thread(second):
    model, batch_norm = Net("first"), torch.batch_norm
    graph = prunus.trace(model, X)
    MEANWHILE["first"] = second
    assert prunus.shrink(model, graph, {"a": [0, 2, 5]}).a.out_features == 3
    second.finish()
    assert torch.batch_norm is batch_norm


def test_a_model_that_another_thread_runs_says_nothing_of_the_traced_one():
    def run():
        thread = threading.Thread(target=Net("other"), args=(X,))
        thread.start()
        thread.join()

    MEANWHILE["modeless"] = run
    assert prunus.trace(Modeless("modeless"), X).traced == ("eval",)
    MEANWHILE.clear()
