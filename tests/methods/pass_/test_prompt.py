"""The visual prompt of PASS."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from prunus.errors import UserError
from prunus.methods.pass_ import PASS, Config
from prunus.methods.pass_.prompt import Prompt, Prompted
from tests.lib.dhp import small
from tests.lib.pass_ import HALF, X, batches, searched


# -------------------------------------------------------------------------------------- 8: the prompt
def test_the_prompt_learns_inside_its_frame_alone():
    search = searched(config=Config(prompt_size=2))
    canvas = search.prompt.canvas()
    inside = canvas[:, 2:-2, 2:-2]
    assert inside.shape == (1, 4, 4) and not inside.any()
    assert (canvas != 0).sum() == 64 - 16
    assert not search.prompt.values[:, 2:-2, 2:-2].any()  # nor behind the frame


def test_the_prompt_learns_from_the_images_and_through_the_hypernetwork():
    search = searched(steps=4)
    x, y = next(batches(1))
    original, values = search.prompt.canvas, search.prompt.values
    for calls in ({1}, {2}):  # which call is cut off: that of the scores comes first
        count = []

        def cut(calls=calls, count=count):
            count.append(1)
            canvas = original()
            return canvas.detach() if len(count) in calls else canvas

        search.prompt.canvas = cut
        values.grad = None
        F.cross_entropy(search(x), y).backward()
        assert len(count) == 2 and values.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["pad", "fixed", "random"])
@pytest.mark.parametrize("how", ["add", "replace"])
def test_kinds_of_prompts(kind, how):
    prompt = Prompt((3, 12, 10), kind, 3, how)
    with torch.no_grad():
        prompt.values.copy_(torch.rand(3, 12, 10) + 1)
    x, shown = torch.rand(4, 3, 12, 10), set()
    for _ in range(20):
        out = prompt(x)
        where = (out != x).any(0).any(0)
        rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
        shown.add((rows.min().item(), columns.min().item()))
        assert where.sum() == (12 * 10 - 6 * 4 if kind == "pad" else 9)
        if how == "replace":
            assert torch.equal(out[0][:, where], out[1][:, where])
    assert len(shown) > 5 if kind == "random" else shown == {(0, 0)}


@pytest.mark.parametrize(
    ("side", "size"), [(224, 16), (64, 5), (32, 2), (8, 1)], ids=["224", "64", "32", "8"]
)
def test_the_usual_size_of_a_frame(side, size):
    assert Prompt((3, side, side)).size == size


def test_the_first_state_is_made_of_the_prompt():
    search = PASS(small(), X, HALF, config=Config(init="random"))
    before = search.scores()
    with torch.no_grad():
        search.prompt.values.fill_(0.1)
    assert not torch.equal(search.scores(), before)


def test_a_network_with_its_prompt():
    search = searched(keep_prompt=True)
    found = search.finish()
    assert isinstance(found, Prompted) and not any(map(parametrize.is_parametrized, found.modules()))
    found.eval()
    assert not torch.equal(found(X), found.network(X))
    assert found.prompt.values.requires_grad and found.prompt.values is not search.prompt.values
    for prompt in ("none", "random"):  # there is none, or it would be elsewhere at every call
        with pytest.raises(UserError, match="keep_prompt"):
            PASS(small(), X, HALF, config=Config(prompt=prompt), keep_prompt=True)


# ------------------------------------------------------------------------------------- what is refused
def test_inputs_that_are_no_images_have_no_prompt():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(UserError, match=r"\(2, 6\).*prompt=none"):
        PASS(model, torch.randn(2, 6), HALF)
    search = PASS(model, torch.randn(2, 6), HALF, config=Config(prompt="none"), steps=2)
    optimizer = torch.optim.Adam(search.learned(), lr=1e-3)
    for _ in range(2):
        search(torch.randn(5, 6)).sum().backward()
        optimizer.step()
        search.step()
    assert search.finish()[0].weight.shape[0] < 12


@pytest.mark.parametrize("config", [Config(prompt_size=4), Config(prompt="fixed", prompt_size=9)])
def test_prompts_larger_than_the_images_are_refused(config):
    with pytest.raises(UserError, match=r"8x8.*prompt_size"):
        PASS(small(), X, HALF, config=config)


def test_images_of_another_size_are_refused_and_the_search_goes_on():
    search = PASS(small(), X, HALF)
    with pytest.raises(UserError, match=r"\(1, 8, 8\).*\(1, 9, 9\)"):
        search(torch.zeros(2, 1, 9, 9))
    with pytest.raises(UserError, match="uint8"):
        search(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert search(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
