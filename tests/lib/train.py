"""Data for tests of training."""

from prunus.train import along


class Each(along.Along):
    """Calls a function after each step."""

    def __init__(self, do):
        self.do = do

    def after_step(self, at, step, lr):
        self.do(step, lr)
