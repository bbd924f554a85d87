"""N:M and blocks: what stays, in every kind of weight, and what is left dense."""

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import BudgetError, UserError
from prunus.sparse import choose, contracted, patterns, unfit
from prunus.sparse import scores as weight_scores
from prunus.sparse.patterns import Blocks, NofM, n_of_m, parse, share

SHAPES = [(8, 16), (6, 8, 3, 3), (5, 16, 3), (4, 8, 3, 3, 3), (8, 8, 1, 1)]
NM = [NofM(2, 4), NofM(1, 4), NofM(4, 8), NofM(3, 4), NofM(1, 2)]


def groups(tensor, m, dim=1):
    """(groups, m), by the definition: neighbours along the inputs."""
    return tensor.movedim(dim, -1).reshape(-1, m)


# ---------------------------------------------------------------------------------------------- words
def test_patterns_are_read():
    assert parse("2:4") == NofM(2, 4) and parse("16x1") == Blocks(16, 1) and str(parse("4:8")) == "4:8"
    assert share("2:4") == 0.5 and share("1:4") == 0.75 and share("4x4") is None and share(None) is None
    for wrong in ("4:4", "0:4", "4:2", "1x1", "0x4", "2-4", "", "2:4:8", "1:4096"):
        with pytest.raises(UserError, match="expected N:M such as 2:4"):
            parse(wrong)


# ------------------------------------------------------------------------------------------------ N:M
@pytest.mark.parametrize("pattern", NM, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("values", [2, 10**6])
def test_the_best_n_of_every_m_stay(shape, pattern, values):
    """Also where nearly all scores are equal: earlier ones first."""
    score = torch.randint(values, shape, generator=torch.Generator().manual_seed(1)).float()
    if shape[1] % pattern.m:
        return
    mask = n_of_m(score, pattern)
    found, ranked = (
        groups(mask, pattern.m),
        groups(score, pattern.m).sort(dim=1, descending=True, stable=True).indices,
    )
    expected = torch.zeros_like(found).scatter_(1, ranked[:, : pattern.n], True)
    assert mask.shape == score.shape and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_large_weights_of_any_type_and_memory_format(dtype):
    """More than one chunk, with a remainder."""
    score = torch.rand(700, 64, 3, 3).to(dtype)
    mask = n_of_m(score, NofM(2, 4))
    assert (groups(mask, 4).sum(1) == 2).all()
    kept, gone = groups(score.float(), 4)[groups(mask, 4)], groups(score.float(), 4)[~groups(mask, 4)]
    assert (kept.view(-1, 2).amin(1) >= gone.view(-1, 2).amax(1)).all()
    assert torch.equal(n_of_m(score.contiguous(memory_format=torch.channels_last), NofM(2, 4)), mask)


def test_a_transposed_weight_has_its_inputs_first():
    score = torch.rand(16, 6, 3, 3)
    mask = n_of_m(score, NofM(2, 4), dim=0)
    assert (groups(mask, 4, dim=0).sum(1) == 2).all()
    assert torch.equal(mask.transpose(0, 1), n_of_m(score.transpose(0, 1), NofM(2, 4)))


def test_what_stands_behind_does_not_matter():
    """A factor for each output leaves N:M as it is, one for each input does not."""
    score, behind, before = torch.rand(32, 64), torch.rand(32, 1) + 0.1, torch.rand(1, 64) + 0.1
    assert torch.equal(n_of_m(score, NofM(2, 4)), n_of_m(score * behind, NofM(2, 4)))
    assert not torch.equal(n_of_m(score, NofM(2, 4)), n_of_m(score * before, NofM(2, 4)))


def test_pruned_weights_stay_pruned_and_take_no_place():
    score, within = torch.rand(16, 32), torch.rand(16, 32) < 0.5
    mask = n_of_m(score, NofM(2, 4), within=within)
    assert not (mask & ~within).any()
    assert torch.equal(groups(mask, 4).sum(1), groups(within, 4).sum(1).clamp_max(2))


# --------------------------------------------------------------------------------------------- blocks
@pytest.mark.parametrize("pattern", ["1x4", "16x1", "4x4", "8x2"])
@pytest.mark.parametrize("sparsity", [0.3, 0.75, 0.97])
@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp", "global", "paper"])
def test_blocks_stay_or_go_whole(pattern, sparsity, allocation):
    given = {"a": torch.rand(32, 16, 3, 3), "b": torch.rand(64, 32), "c": torch.rand(16, 64)}
    masks = choose(given, sparsity, pattern=pattern, allocation=allocation)
    blocks, total = parse(pattern), sum(score.numel() for score in given.values())
    area = blocks.rows * blocks.columns
    for name, mask in masks.items():
        flat = mask.movedim(1, -1).flatten(1)  # (O, kh * kw * I)
        found = flat.unflatten(0, (-1, blocks.rows)).unflatten(-1, (-1, blocks.columns)).sum((1, 3))
        assert set(found.unique().tolist()) <= {0, area}, name
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == area * round(round((1 - sparsity) * total) / area)


def test_the_blocks_of_the_largest_sums_stay():
    score = torch.rand(32, 64)
    mask = choose({"w": score}, 0.75, pattern="4x4")["w"]
    sums = score.view(8, 4, 16, 4).sum((1, 3))
    stays = mask.view(8, 4, 16, 4).any(3).any(1)
    assert stays.sum() == 32 and sums[stays].min() > sums[~stays].max()


def test_blocks_within_masks_so_far():
    given = {"a": torch.rand(32, 32), "b": torch.rand(64, 32)}
    first = choose(given, 0.5, pattern="4x4")
    second = choose({n: torch.rand_like(s) for n, s in given.items()}, 0.8, pattern="4x4", within=first)
    assert not any((second[name] & ~first[name]).any() for name in given)
    assert sum(int(mask.sum()) for mask in second.values()) == 16 * round(0.2 * 3072 / 16)


# -------------------------------------------------------------------------------------- left dense
class Odd(nn.Module):
    """Layers that a pattern fits and layers that it does not."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 6, 2, stride=2)
        self.thin = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.up(self.depthwise(self.grouped(self.first(x).relu()).relu()))
        return self.head(self.thin(x).mean((2, 3)))


def test_layers_that_do_not_fit_are_left_dense_and_named():
    model = Odd()
    graph = prunus.trace(model, torch.randn(1, 3, 8, 8))
    scores, dims = weight_scores.magnitude(model, graph), contracted(graph)
    assert dims["up.weight"] == 0 and dims["head.weight"] == dims["grouped.weight"] == 1
    masks = choose(scores, 0.5, pattern="2:4", dims=dims)
    left = unfit({name: score.shape for name, score in scores.items()}, "2:4", dims)
    assert masks.keys() | left.keys() == scores.keys() and not masks.keys() & left.keys()
    assert set(left) == {"first.weight", "depthwise.weight", "thin.weight"}
    assert left["first.weight"] == "has 3 inputs to each output, not a multiple of 4"
    assert (groups(masks["up.weight"], 4, dim=0).sum(1) == 2).all()
    blocks = unfit({name: score.shape for name, score in scores.items()}, "4x1", dims)
    assert set(blocks) == {"head.weight", "up.weight"} and "10 outputs" in blocks["head.weight"]


def test_what_is_left_dense_counts_as_kept():
    given = {"fits": torch.rand(64, 64), "odd": torch.rand(3, 3)}
    mask = choose(given, 0.8, pattern="4x4")
    assert set(mask) == {"fits"}
    assert abs(int(mask["fits"].sum()) + 9 - 0.2 * (64 * 64 + 9)) <= 8
    with pytest.raises(BudgetError, match=r"1 layers they do not fit stay dense"):
        choose({"fits": torch.rand(64, 64), "odd": torch.rand(63, 63)}, 0.8, pattern="4x4")


def test_a_pattern_that_fits_nothing_and_a_sparsity_it_cannot_give():
    with pytest.raises(UserError, match="fits no layer: w has 3 inputs"):
        choose({"w": torch.rand(4, 3)}, 0.5, pattern="2:4")
    with pytest.raises(UserError, match=r"2:4 gives sparsity 0\.5, not 0\.8"):
        choose({"w": torch.rand(4, 4)}, 0.8, pattern="2:4")


def test_equal_scores_in_blocks():
    mask = choose({"w": torch.zeros(16, 16)}, 0.5, pattern="4x4")["w"]
    assert mask[:8].all() and not mask[8:].any()
    assert patterns.block_scores(torch.ones(16, 8, 3, 3), Blocks(4, 2)).shape == (4, 4, 3, 3)
