"""Faults that would make results worse or wrong without an error, and the tests that have to notice each.

A fault is a change of one place in the source. test_guard.py makes each in a copy of the package and runs its tests
there, one of which at least must fail.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """A change of the source.

    Args:
        name: What the changed package does.
        file: The file, below prunus/.
        old: Text that occurs there once.
        new: The text in its place.
        tests: The test files that notice it, separated by spaces.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = (
    Fault(
        "keep the worst units",
        "selection/choose.py",
        "score[units].sort(descending=True, stable=True)",
        "score[units].sort(descending=False, stable=True)",
        "tests/selection/test_selection.py",
    ),
    Fault(
        "exceed the budget by 2 %",
        "selection/budget.py",
        "return self.value * before",
        "return 1.02 * self.value * before",
        "tests/selection/test_selection.py",
    ),
    Fault(
        "leave a part of the budget unused",
        "selection/budget.py",
        "return self.value * before",
        "return 0.95 * self.value * before",
        "tests/selection/test_selection.py",
    ),
    Fault(
        "leave one index out",
        "graph/places.py",
        "axes.positions(layout, self.keep).to(device)",
        "axes.positions(layout, self.keep)[:-1].to(device)",
        "tests/surgery/test_three_ways.py",
    ),
    Fault(
        "cut the next units",
        "graph/places.py",
        "axes.positions(layout, self.keep).to(device)",
        "((axes.positions(layout, self.keep) + 1) % axes.size(layout)).to(device)",
        "tests/surgery/test_three_ways.py",
    ),
    Fault(
        "let every proof hold",
        "surgery/proof.py",
        "return self.max_abs_error <= self.tolerance",
        "return True",
        "tests/surgery/test_proof.py",
    ),
    Fault(
        "prove without comparing weights",
        "surgery/proof.py",
        "        pair.check_weights()",
        "        pass",
        "tests/surgery/test_proof.py tests/surgery/test_surgery_input.py",
    ),
    Fault(
        "score by the square of the norm",
        "scores/weights.py",
        "_normalize(power ** (1 / p), normalize)",
        "_normalize(power, normalize)",
        "tests/scores/test_scores.py",
    ),
    Fault(
        "renew no norms",
        "recover/finetune.py",
        "    renew_norms(small, calibration_batches(task.data.train, seed))\n",
        "",
        "tests/recover/test_recover.py",
    ),
    Fault(
        "renew norms by the last batch alone",
        "recover/norms.py",
        "pooled[norm] = pool(pooled.get(norm), ",
        "pooled[norm] = pool(None, ",
        "tests/recover/test_recover.py",
    ),
    Fault(
        "teach from an untrained network",
        "run/stages.py",
        "            teacher=self.base_model(),",
        "            teacher=self.fresh_model(),",
        "tests/run/test_run.py",
    ),
    Fault(
        "teach nothing",
        "train/loop.py",
        "torch.lerp(loss, distilled, recipe.distill_weight)",
        "torch.lerp(loss, distilled, 0.0)",
        "tests/train/test_train.py",
    ),
    Fault(
        "learn the images that choices are made on",
        "train/loop.py",
        "train, steps = task.data.train, task.data.train.steps",
        "train, steps = task.data.val, task.data.val.steps",
        "tests/train/test_train.py",
    ),
    Fault(
        "augment nothing",
        "train/loop.py",
        '"augment": True',
        '"augment": False',
        "tests/train/test_train.py",
    ),
    Fault(
        "show every epoch in the same order",
        "train/loop.py",
        '"epoch": at.epoch, "start"',
        '"epoch": 0, "start"',
        "tests/train/test_train.py",
    ),
    Fault(
        "test on the images that choices are made on",
        "run/stages.py",
        "split = self.task.data.judged",
        "split = self.task.data.val",
        "tests/run/test_run.py",
    ),
    Fault(
        "report the original's metric as the small one's",
        "run/stages.py",
        '"test": self.test(small),\n            "before"',
        '"test": self.test(base),\n            "before"',
        "tests/run/test_run.py",
    ),
    Fault(
        "hold out what is trained on",
        "data/split.py",
        "return np.setdiff1d(np.arange(len(labels)), held), held",
        "return np.arange(len(labels)), held",
        "tests/data/test_data.py",
    ),
    Fault(
        "count every multiplication twice",
        "selection/cost.py",
        'return int(of(graph, "macs", graph.widths(keep)))',
        'return 2 * int(of(graph, "macs", graph.widths(keep)))',
        "tests/selection/test_cost.py",
    ),
)
