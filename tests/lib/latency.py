"""A runtime that needs no clock."""

from math import prod

from prunus.graph import trace
from prunus.latency import operators
from prunus.latency.operator_timing import Runtime


def by_size(operator, sizes):
    """A time in milliseconds that linear interpolation predicts exactly, and that differs between operators."""
    return 1e-3 * (1 + len(operator.key) % 7) * prod(sizes)


class FakeCall:
    """A call of the fake runtime; it only knows its model."""

    def __init__(self, model, example):
        self.operators = operators.operators(trace(model, example))


class Fake(Runtime):
    """A clock without noise. of_operator: ms by operator and sizes; of_network: ms from the sum of its operators'."""

    name = "fake"

    def __init__(self, of_operator=by_size, of_network=lambda total: 2.0 * total + 3.0):
        self.of_operator, self.of_network = of_operator, of_network
        self.timed, self.raced = [], 0

    def operators(self, wanted, like, seconds, step):
        self.timed += [operator.key for operator, _ in wanted]
        return [self.of_operator(operator, sizes) for operator, sizes in wanted]

    def prepare(self, model, example):
        return FakeCall(model, example)

    def race(self, calls, seconds, step):
        self.raced += 1
        times = [
            self.of_network(sum(self.of_operator(op, op.full) or 0.0 for op in each.operators))
            for each in calls
        ]
        # the machine gets slower and faster, for all calls alike
        return [[ms * (1 + 0.5 * (number % 3)) for number in range(9)] for ms in times]


WRONG = {
    "right": lambda total: 2.0 * total + 3.0,
    "saves less than it seems": lambda total: 5 * total**0.5,
    "saves more than it seems": lambda total: total**1.6,
    "steps": lambda total: 2.0 * (total // 4) + 3.0,
    "hardly anything can be saved": lambda total: total + 60.0,
}


class Bent(Fake):
    """Random sub-networks, on which the table is fitted, take the sum of their operators; proposals do not."""

    def __init__(self, of_network, of_operator=by_size):
        super().__init__(of_operator, of_network=lambda total: total)
        self.bent = of_network

    def race(self, calls, seconds, step):
        if self.raced:
            self.of_network = self.bent
        return super().race(calls, seconds, step)
