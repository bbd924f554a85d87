"""The options of PASS, and those it refuses."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from prunus.errors import BudgetError, TrainingError, UserError
from prunus.gates import Gate
from prunus.methods.pass_ import PASS, Config
from prunus.selection import Budget
from tests.lib.dhp import small
from tests.lib.pass_ import HALF, X, batches, figure, searched


def test_half_of_a_batch_may_go_without():
    search = PASS(small(), X, HALF, config=Config(prompted=0.5))
    with torch.no_grad():
        search.prompt.values.fill_(1.0)
    x = torch.zeros(4, 1, 8, 8)
    assert search.with_prompt(x)[:2].any() and not search.with_prompt(x)[2:].any()


OPTIONS = [
    Config(prompt="none"),
    Config(prompt=None),
    Config(recurrent=False),
    Config(init="random"),
    Config(masking="product"),
    Config(scope="per_axis"),
    Config(prompt="random", prompt_how="replace", prompted=0.5),
    Config(statistic="fpgm", hidden=8),
    Config(statistic="bn_scale"),
    Config(straight_through="clipped"),
]


@pytest.mark.parametrize("config", OPTIONS, ids=range(len(OPTIONS)))
def test_every_option_runs_to_a_network_within_the_budget(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # bn_scale: some axes have no norm
        search = searched(config=config, steps=4)
    assert search.finish()(X).shape == (1, 10)
    assert figure(search, search.keep) <= 0.5 * figure(search)
    assert not torch.equal(search.scores(), search._first)  # all of it learned something


# --------------------------------------------------------------------- snapshots, and in one's own loop
def test_the_best_snapshot_is_taken():
    """By the values of `score`: here the third of five is best, and later ones are worse."""
    values, seen = iter([0.1, 0.2, 0.9, 0.5, 0.4]), []

    def score(network):
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        seen.append(search.scores().detach() if search.done else None)
        return next(values)

    search = PASS(small(), X, HALF, steps=8, config=Config(snapshots=4, round_to=1), score=score)
    optimizer = torch.optim.Adam(search.learned(), lr=3e-2)
    for x, y in batches(8):
        optimizer.zero_grad()
        F.cross_entropy(search(x), y).backward()
        optimizer.step()
        search.step()
    assert [step for step, _ in search.tried] == [0, 2, 4, 6, 8]
    search.finish()
    assert search.keep == search.config.select(search.graph, search.split_by_axis(seen[2]), HALF)
    assert search.keep != search.config.select(search.graph, search.split_by_axis(search.scores()), HALF)


@pytest.mark.parametrize(("steps", "count"), [(12, 5), (19, 10), (7, 3), (3, 10)])
def test_there_are_as_many_snapshots_as_asked_for(steps, count):
    config = Config(snapshots=count, prompt="none")
    search = PASS(small(), X, HALF, steps=steps, config=config, score=lambda network: 0.0)
    for x, _ in batches(steps):
        search(x)
        search.step()
    tried = [step for step, _ in search.tried]
    assert len(tried) == 1 + min(count, steps) and tried[0] == 0 and tried[-1] == steps
    assert max(b - a for a, b in pairwise(tried)) <= -(-steps // count)


def test_a_score_that_is_no_number_is_refused():
    search = PASS(small(), X, HALF, steps=2, score=lambda network: math.nan)
    search(next(batches(1))[0])
    with pytest.raises(TrainingError, match="nan"):
        search.step()


def test_what_is_tried_is_what_would_be_returned():
    """Without the prompt, in whole blocks, the masked network and the small one have the same output."""
    x, _ = next(batches(1, seed=4))
    outputs = []
    search = PASS(
        small(), X, HALF, steps=1, config=Config(snapshots=1), score=lambda net: outputs.append(net(x)) or 0.0
    )
    with torch.no_grad():
        search.prompt.values.fill_(1.0)
    search(x)
    search.step()
    found = search.finish().train()  # on the statistics of the batch, too
    torch.testing.assert_close(found(x), outputs[0], rtol=1e-4, atol=1e-5)


def test_budgets_that_cannot_be_met_are_refused_at_once():
    with pytest.raises(BudgetError, match="cannot be met"):
        PASS(small(), X, Budget(macs=0.05), config=Config(floor=0.5))
    with pytest.raises(UserError, match="frozen"):
        PASS(small(), X, HALF, config=Config(freeze=("*",)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": "frame"}, "prompt"),
        ({"masking": "producer"}, "masking"),
        ({"steps": 0}, "steps"),
        ({"prompted": 2}, "prompted"),
        ({"how": "isomorphic"}, "scope"),
        ({"hidden": 2.5}, "hidden should be a whole number from 1, but is 2.5; the nearest is 3"),
        ({"lr": "x"}, "lr should be a number"),
        ({"prompt_speed": 0}, "prompt_speed"),
        ({"prompt": "none", "prompt_size": 3, "prompted": 0.5}, "no use for prompt_size, prompted;"),
        ({"snapshots": 0, "held_out": 30}, "no use for held_out"),
        ({"train_also": "head.*"}, "train_also should be a list"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(UserError, match=said):
        PASS(small(), X, HALF, config=Config(**options))


def test_a_loop_that_goes_wrong_is_told_so():
    search = PASS(small(), X, HALF)
    with pytest.raises(UserError, match="before any batch"):
        search.step()
    with torch.no_grad():
        search.hypernetwork.offsets[3] = math.nan
    with pytest.raises(TrainingError, match="NaN"):
        search(torch.zeros(2, 1, 8, 8))
    with pytest.raises(UserError, match="steps"):
        PASS(small(), X, HALF, steps=0)
    with pytest.raises(UserError, match="magnitude"):
        Config().preview()


def test_a_model_with_gates_is_refused_and_left():
    search = searched(steps=1)
    assert any(isinstance(m, Gate) for m in search.network.modules())
    with pytest.raises(UserError, match="gates"):
        PASS(search.network, X, HALF)
