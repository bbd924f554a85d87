"""Blocks that are skipped: what is left of the model, its proof, and its file. Source: ours."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import prunus
from prunus import zoo
from prunus.errors import FileError, PruningError, UserError
from prunus.graph import blocks as blocks_file
from prunus.surgery import Skipped, bypass, carry_over, crop, mask, proof, prove, verify
from tests.lib.blocks import IDS, gpt2, llama
from tests.lib.models import imported_beside_torchvision, torchvision_models

IMAGES = torch.randn(2, 3, 32, 32)


def gone(*modules: str) -> dict[str, list[int]]:
    return {f"{module}:depth": [] for module in modules}


def passed_by(model: nn.Module, *modules: str, zeros: bool = False) -> nn.Module:
    """A copy of a model in which hooks of ours let some modules return their first input, or zeros like it."""
    model = copy.deepcopy(model)

    def hook(module, args, kwargs, output):
        given = next(iter((*args, *kwargs.values())))
        kept = torch.zeros_like(given) if zeros else given
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    for name in modules:
        model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    return model


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = zoo.build("resnet20").eval()
    return model, prunus.trace(model, IMAGES[:1])


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    model = zoo.build("vit_tiny").eval()
    return model, prunus.trace(model, IMAGES[:1])


def test_a_shorter_resnet_answers_as_one_whose_blocks_are_passed_by(resnet):
    model, graph = resnet
    skipped = ["layer1.0", "layer1.2", "layer3.1"]
    small = prunus.shrink(model, graph, gone(*skipped))
    assert torch.equal(small(IMAGES), passed_by(model, *skipped)(IMAGES))
    assert [len(each) for each in (small.layer1, small.layer2, small.layer3)] == [1, 3, 2]
    assert not any(isinstance(module, Skipped) for module in small.modules())
    assert sum(p.numel() for p in small.parameters()) == prunus.params(graph, gone(*skipped))
    assert type(small) is type(model) and len(model.layer1) == 3


def test_a_block_within_a_block(vit):
    model, graph = vit
    small = prunus.shrink(model, graph, gone("blocks.2", "blocks.4.attention"))
    wanted = passed_by(passed_by(model, "blocks.2"), "blocks.4.attention", zeros=True)
    assert torch.equal(small(IMAGES), wanted(IMAGES))
    assert len(small.blocks) == 11 and isinstance(small.blocks[3].attention, Skipped)


def test_a_block_with_its_parts_is_the_block(vit):
    model, graph = vit
    one = prunus.shrink(model, graph, gone("blocks.2"))
    other = prunus.shrink(model, graph, gone("blocks.2.attention", "blocks.2") | {"blocks.2.up": [3]})
    assert torch.equal(one(IMAGES), other(IMAGES)) and len(other.blocks) == 11


def test_blocks_and_units_together(vit):
    model, graph = vit
    keep = prunus.select(graph, prunus.scores.random(graph.deep, 1), prunus.Budget(macs=0.4), how="per_cost")
    assert any(not units for units in keep.values()) and any(
        0 < len(keep[name]) < axis.size for name, axis in graph.axes.items()
    )
    small = prunus.shrink(model, graph, keep)
    assert sum(p.numel() for p in small.parameters()) == prunus.params(graph, keep)
    assert verify(model, graph, keep, small).holds


@pytest.mark.parametrize(
    ("name", "skipped", "shape"),
    [
        ("resnet18", ["layer1.1", "layer3.1"], (1, 3, 64, 64)),
        ("resnet50", ["layer2.1", "layer3.4"], (1, 3, 64, 64)),
        ("convnext_tiny", ["features.5.2", "features.5.3"], (1, 3, 64, 64)),
        (
            "vit_b_32",
            ["encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_5.mlp"],
            (1, 3, 224, 224),
        ),
        ("swin_t", ["features.5.2", "features.5.3.attn"], (1, 3, 64, 64)),
    ],
)
def test_models_of_torchvision(name, skipped, shape):
    model = torchvision_models().get_model(name, weights=None).eval()
    graph = prunus.trace(model, torch.randn(shape))
    small = prunus.shrink(model, graph, gone(*skipped))
    assert sum(p.numel() for p in small.parameters()) == prunus.params(graph, gone(*skipped))


# ------------------------------------------------------------------------------------------- decoders
@pytest.mark.parametrize(
    ("make", "stem", "attention"), [(llama, "model.layers", "self_attn"), (gpt2, "transformer.h", "attn")]
)
@pytest.mark.parametrize("skipped", [["1", "3"], ["2.attention", "3"], ["0", "1", "2", "3"]])
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_decoders_answer_alike_with_a_cache_and_without(make, stem, attention, skipped):
    """Layers are numbered anew, because the number of a layer is that of its cache."""
    model, example = make()
    graph = prunus.trace(model, example)
    skipped = [f"{stem}.{each}".replace("attention", attention) for each in skipped]
    small = prunus.shrink(model, graph, gone(*skipped))
    layers = 5 - sum("." not in each.removeprefix(f"{stem}.") for each in skipped)
    assert small.config.num_hidden_layers == layers == len(small.get_submodule(stem))
    assert model.config.num_hidden_layers == 5
    numbers = [
        (name, module.layer_idx) for name, module in small.named_modules() if hasattr(module, "layer_idx")
    ]
    assert all(f".{number}." in f"{name}." for name, number in numbers)

    whole = {name: name in skipped for name in (f"{stem}.{i}" for i in range(5))}
    wanted = passed_by(model, *(name for name, is_gone in whole.items() if is_gone))
    wanted = passed_by(wanted, *(name for name in skipped if name.endswith(attention)), zeros=True)
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = small.generate(IDS, use_cache=False, **settings)
    assert torch.equal(small.generate(IDS, use_cache=True, **settings), plain)
    with torch.no_grad():
        logits = small(plain, use_cache=False).logits
        torch.testing.assert_close(logits, wanted(plain, use_cache=False).logits)
        step = small(plain[:, :8], use_cache=True)
        for place in range(8, plain.shape[1]):
            step = small(plain[:, place : place + 1], past_key_values=step.past_key_values, use_cache=True)
            torch.testing.assert_close(step.logits[:, -1], logits[:, place])


@pytest.mark.parametrize(("make", "stem"), [(llama, "model.layers"), (gpt2, "transformer.h")])
def test_a_shorter_decoder_is_what_its_config_makes(make, stem, tmp_path):
    model, example = make()
    small = prunus.shrink(model, prunus.trace(model, example), gone(f"{stem}.1", f"{stem}.2"))
    prunus.check_config(small)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    there = again.state_dict()
    assert all(torch.equal(tensor, there[name]) for name, tensor in small.state_dict().items())
    torch.testing.assert_close(again(IDS).logits, small(IDS).logits, rtol=1e-5, atol=1e-6)


def test_layers_and_equal_widths_are_what_a_config_makes():
    model, example = llama()
    graph = prunus.trace(model, example)
    scores = prunus.scores.random(graph, 0)
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.7), uniform=True) | gone("model.layers.2")
    prunus.check_config(prunus.shrink(model, graph, keep))
    blocks = {name: torch.rand(1) for name, block in graph.blocks.items() if not block.branch}
    keep = prunus.select(graph, scores | blocks, prunus.Budget(macs=0.5), uniform=True)
    prunus.check_config(prunus.shrink(model, graph, keep))


def test_what_a_config_says_of_each_layer_is_cut_with_them():
    transformers = imported_beside_torchvision("transformers")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 5,
        "vocab_size": 40,
        "head_dim": 4,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes, **heads)).eval()
    kinds = list(model.config.layer_types)
    small = prunus.shrink(
        model, prunus.trace(model, {"input_ids": IDS}), gone("model.layers.1", "model.layers.2")
    )
    assert small.config.layer_types == [kinds[0], kinds[3], kinds[4]] and model.config.layer_types == kinds
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = small.generate(IDS, use_cache=True, **settings)
    assert torch.equal(cached, small.generate(IDS, use_cache=False, **settings))


def test_a_scale_that_is_made_from_the_number_of_a_layer_stays():
    model, example = gpt2(scale_attn_by_inverse_layer_idx=True)
    graph = prunus.trace(model, example)
    small = prunus.shrink(model, graph, gone("transformer.h.1"))
    wanted = passed_by(model, "transformer.h.1")
    torch.testing.assert_close(small(IDS).logits, wanted(IDS).logits)


def test_an_encoder_with_norms_after_the_sums_loses_them_with_the_layer():
    transformers = imported_beside_torchvision("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=40, **sizes)).eval()
    graph = prunus.trace(model, {"input_ids": IDS})
    small = prunus.shrink(model, graph, gone("encoder.layer.1", "encoder.layer.2.attention"))
    assert len(small.encoder.layer) == small.config.num_hidden_layers == 3
    wanted = passed_by(model, "encoder.layer.1", "encoder.layer.2.attention")
    torch.testing.assert_close(small(IDS)[0], wanted(IDS)[0])


# ------------------------------------------------------------------------------ shorter, or stood in for
class Link(nn.Module):
    def __init__(self, number: int):
        super().__init__()
        self.number, self.inner = number, nn.Linear(6, 6)

    def forward(self, x):
        return x + self.inner(x)


class Links(nn.Module):
    """Links that are run by a rule."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.start, self.end = rule, nn.Linear(6, 6), nn.Linear(6, 2)
        self.links = nn.ModuleList(Link(i) for i in range(5))

    def forward(self, x):
        return self.end(self.rule(self.links, self.start(x)))


def one_by_one(links, x):
    for link in links:
        x = link(x)
    return x


def by_number(links, x):
    for number in range(5):
        x = links[number](x)
    return x


def last_is_special(links, x):
    for number, link in enumerate(links):
        x = link(x)
        if number == 3:
            x = torch.tanh(x)
    return x


def scaled_by_number(links, x):
    for link in links:
        x = link(x) * (1 + link.number)
    return x


@pytest.mark.parametrize(
    ("rule", "length"), [(one_by_one, 4), (by_number, 5), (last_is_special, 5), (scaled_by_number, 5)]
)
def test_a_list_is_shortened_only_where_the_model_runs_the_same_operators(rule, length, tmp_path):
    torch.manual_seed(0)
    model, x = Links(rule).eval(), torch.randn(3, 6)
    graph = prunus.trace(model, x)
    keep = gone("links.2")
    small = prunus.shrink(model, graph, keep)
    assert len(small.links) == length
    assert isinstance(small.links[2], Skipped) == (length == 5)
    assert torch.equal(small(x), passed_by(model, "links.2")(x))
    prunus.save(tmp_path, small, keep, graph)
    assert torch.equal(prunus.load(tmp_path, model)(x), small(x))


def test_the_numbers_of_links_follow_in_a_shorter_list():
    model, x = Links(one_by_one).eval(), torch.randn(3, 6)
    small = prunus.shrink(model, prunus.trace(model, x), gone("links.0", "links.1", "links.2", "links.3"))
    assert [link.number for link in small.links] == [0] and [link.number for link in model.links] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_what_stands_in_keeps_the_numbers_and_words_that_others_read():
    class Reading(Links):
        def forward(self, x):
            x = self.start(x)
            for place in range(5):
                x = self.links[place](x) + 0 * self.links[place].number
            return self.end(x)

    model, x = Reading(None).eval(), torch.randn(3, 6)
    small = prunus.shrink(model, prunus.trace(model, x), gone("links.2"))
    assert small.links[2].number == 2 and "returns argument 0" in repr(small.links[2])


def test_a_small_model_can_be_exported(vit):
    model, graph = vit
    small = prunus.shrink(model, graph, gone("blocks.2", "blocks.4.attention")).eval()
    program = torch.export.export(small, (IMAGES,))
    torch.testing.assert_close(program.module()(IMAGES), small(IMAGES))


# ---------------------------------------------------------------------------------------------- proof
def test_the_proof_finds_a_wrong_small_model(vit):
    model, graph = vit
    keep = gone("blocks.2", "blocks.4")
    right = prunus.shrink(model, graph, keep)
    other = prunus.shrink(model, graph, gone("blocks.2", "blocks.5"))
    with pytest.raises(PruningError, match="does not hold the kept weights"):
        prove(model, graph, keep, other)
    swapped = copy.deepcopy(right)
    swapped.blocks[1], swapped.blocks[2] = swapped.blocks[2], swapped.blocks[1]
    with pytest.raises(PruningError):
        prove(model, graph, keep, swapped)


def test_the_proof_finds_a_module_that_is_no_block(monkeypatch):
    """As if the search took any module whose output has the layout of its input."""

    class Halving(Link):
        def forward(self, x):
            return 0.5 * x + self.inner(x)

    model, x = Links(one_by_one).eval(), torch.randn(3, 6)
    model.links[2] = Halving(2)
    assert "links.2:depth" not in prunus.trace(model, x).blocks
    always = blocks_file.SAME_PLACES | blocks_file.MULTIPLICATION
    monkeypatch.setattr(blocks_file, "SAME_PLACES", always)
    graph = prunus.trace(model, x)
    with pytest.raises(PruningError, match=r"links.2 cannot be skipped: with all its parameters at zero"):
        prunus.shrink(model, graph, gone("links.2"))


def test_large_models_are_proved_without_their_skipped_blocks(monkeypatch):
    monkeypatch.setattr(proof, "LARGE_MODEL", 0)
    model, example = llama()
    graph = prunus.trace(model, example)
    for keep in (gone("model.layers.0"), gone("model.layers.1", "model.layers.2.self_attn")):
        found = verify(model, graph, keep, prunus.shrink(model, graph, keep, verify="off"))
        assert found.holds and found.calls == ("decode", "decode padded")


def test_training_is_proved_without_the_draws_of_a_skipped_block():
    class Dropping(Links):
        def __init__(self):
            super().__init__(None)
            self.drop = nn.ModuleList(nn.Dropout(0.5) for _ in range(5))
            for link in self.links:
                link.inner = nn.Sequential(link.inner, nn.Dropout(0.3))

        def forward(self, x):
            x = self.start(x) + (1 if self.training else 0)
            for link, drop in zip(self.links, self.drop, strict=True):
                x = drop(link(x))
            return self.end(x)

    model, x = Dropping().eval(), torch.randn(3, 6)
    graph = prunus.trace(model, x)
    assert graph.traced == ("eval", "train")
    keep = gone("links.2")
    small = prunus.shrink(model, graph, keep)
    assert verify(model, graph, keep, small).modes == ("eval", "train")


# ------------------------------------------------------------------------ other ways to apply a keep
def test_masks_and_crops_answer_as_the_small_model(resnet):
    model, graph = resnet
    keep = gone("layer1.1", "layer2.1") | {"layer3.1.conv1": list(range(40))}
    small = prunus.shrink(model, graph, keep)
    torch.testing.assert_close(mask(model, graph, keep)(IMAGES), small(IMAGES))
    cropped = copy.deepcopy(model)
    out = crop(cropped, graph, keep, IMAGES)
    torch.testing.assert_close(out, small(IMAGES))
    out.sum().backward()
    assert cropped.layer1[1].conv1.weight.grad is None
    assert cropped.layer1[2].conv1.weight.grad.abs().sum() > 0


def test_an_optimiser_goes_on_without_the_parameters_of_a_skipped_block(resnet):
    model, graph = copy.deepcopy(resnet[0]), resnet[1]
    optimizer = torch.optim.Adam(model.parameters())
    model(IMAGES).square().sum().backward()
    optimizer.step()
    keep = gone("layer1.1", "layer3.1")
    small = prunus.shrink(model, graph, keep)
    carried, _ = carry_over(graph, keep, model, small, optimizer=optimizer)
    held = carried.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()} and len(carried.state) == len(held)
    before = optimizer.state[model.layer1[2].conv1.weight]["exp_avg"]
    assert torch.equal(carried.state[small.layer1[1].conv1.weight]["exp_avg"], before)


# ----------------------------------------------------------------------------------------------- files
def test_a_saved_model_comes_back(resnet, vit, tmp_path):
    for number, ((model, graph), keep) in enumerate(
        [
            (resnet, gone("layer1.1", "layer2.2") | {"layer3.1.conv1": list(range(40))}),
            (vit, gone("blocks.2", "blocks.4.attention", "blocks.7") | {"blocks.8.up": list(range(9))}),
        ]
    ):
        small = prunus.shrink(model, graph, keep)
        prunus.save(tmp_path / str(number), small, keep, graph)
        other = prunus.load(tmp_path / str(number), zoo.build(["resnet20", "vit_tiny"][number])).eval()
        assert torch.equal(other(IMAGES), small(IMAGES))
        assert [name for name, _ in other.named_modules()] == [name for name, _ in small.named_modules()]
        assert prunus.export.load_keep(tmp_path / str(number)) == keep


def test_a_saved_decoder_comes_back_with_its_caches(tmp_path):
    model, example = llama()
    graph = prunus.trace(model, example)
    keep = gone("model.layers.1", "model.layers.2.self_attn")
    small = prunus.shrink(model, graph, keep)
    prunus.save(tmp_path, small, keep, graph)
    other = prunus.load(tmp_path, llama()[0])
    assert other.config.num_hidden_layers == 4
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(other.generate(IDS, **settings), small.generate(IDS, **settings))


def test_a_file_of_another_model_is_refused(resnet, vit, tmp_path):
    keep = gone("layer1.1")
    prunus.save(tmp_path, prunus.shrink(*resnet, keep), keep, resnet[1])
    with pytest.raises(FileError, match="was pruned from another one"):
        prunus.load(tmp_path, vit[0])
    with pytest.raises(FileError, match="does not fit the keep"):
        prunus.save(tmp_path, prunus.shrink(*resnet, gone("layer2.1")), keep, resnet[1])
    with pytest.raises(UserError, match=r"unknown block 'layer1.1:depth'"):
        prunus.shrink(*vit, keep)


@pytest.mark.parametrize("names", ["1234", "a1b3"])
def test_a_list_that_is_numbered_otherwise_stays_whole(names):
    torch.manual_seed(0)
    links = nn.Sequential(OrderedDict((name, Link(0)) for name in names))
    model = nn.Sequential(nn.Linear(5, 6), links, nn.Linear(6, 2))
    x = torch.randn(3, 5)
    graph = prunus.trace(model, x)
    skipped = [f"1.{names[1]}", f"1.{names[2]}"]
    small = prunus.shrink(model, graph, gone(*skipped))
    assert list(small[1]._modules) == list(names)
    assert torch.equal(small(x), passed_by(model, *skipped)(x))


def test_a_count_in_a_plain_dict_follows():
    class Counted(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.stem = nn.Linear(5, 6)
            self.links = nn.ModuleList(Link(number) for number in range(config["n"]))
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x)
            for link in self.links:
                x = link(x)
            return self.head(x)

    model = Counted({"n": 4})
    graph = prunus.trace(model, torch.randn(3, 5))
    small = prunus.shrink(model, graph, gone("links.1"))
    assert len(small.links) == 3 and small.config == {"n": 3} and model.config == {"n": 4}


def test_a_block_that_fails_in_one_call_is_passed_by_in_the_next():
    model = nn.Sequential(nn.Linear(5, 6), Link(0), nn.Linear(6, 2))
    graph = prunus.trace(model, torch.randn(2, 5))
    bypass.bypass(model, graph.blocks["1:depth"])

    def fail(x):
        raise ZeroDivisionError

    usual, x = model[1].inner.forward, torch.randn(2, 6)
    model[1].inner.forward = fail
    with pytest.raises(ZeroDivisionError):
        model[1](x)
    model[1].inner.forward = usual
    assert torch.equal(model[1](x), x)
