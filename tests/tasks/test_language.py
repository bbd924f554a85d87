"""Texts are classified and tokens predicted from base to report; padding, and what has no target, counts nowhere."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import report, scores
from prunus.data import Split, find_tokenizer, load_blocks, load_texts
from prunus.errors import UserError
from prunus.run import Settings
from prunus.run.export import export_run
from prunus.run.reopen import reopen_task
from prunus.selection import Budget, Sparsity
from prunus.tasks import LanguageModelling, TextClassification
from tests.lib.texts import (
    WORDS,
    Constant,
    decoder,
    encoder,
    sentences,
    write_book,
    write_csv,
    write_tokenizer,
)

BRIEF = {"base_epochs": 2, "epochs": 1, "batch_size": 8, "precision": "no"}
MODELS = {"text": "tests.lib.texts:encoder", "lm": "tests.lib.texts:decoder"}
KEY = {"text": "accuracy", "lm": "perplexity"}
IGNORED = -100


def spec_of(task, folder):
    if task == "text":
        return f"csv:{write_csv(folder / 'texts.csv', sentences(60))}"
    return f"text:{write_book(folder / 'book.txt', 24)}"


def made(task, folder, model=None, **options):
    """The task in Python, with a tiny network."""
    if task == "text":
        return TextClassification(
            model or encoder(length=64), load_texts(spec_of(task, folder), length=64), **options
        )
    return LanguageModelling(model or decoder(), load_blocks(spec_of(task, folder), length=32), **options)


def pruned(task, folder, method="magnitude", budget=None, **settings):
    return prunus.prune(
        MODELS[task],
        data=spec_of(task, folder),
        task=task,
        method=method,
        budget=budget,
        out=folder / "run",
        settings=Settings(**{"task_options": ("length=64",), **BRIEF, **settings}),
    )


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
@pytest.mark.parametrize("task", MODELS)
def test_from_base_to_report(task, method, tmp_path):
    values = pruned(task, tmp_path, method, base_epochs=4).values
    assert values["verified"]["max_abs_error"] < 1e-6
    assert values["after"]["macs"] <= 0.5 * values["before"]["macs"]
    losses = [row["loss"] for row in values["history"]["base"]]
    assert losses[-1] < losses[0]
    assert all(KEY[task] in row for row in values["history"]["recover"])
    metric = values["metric_shown"]
    assert (metric["key"], metric["higher_is_better"]) == (KEY[task], task == "text")
    if task == "lm":  # no worse than all bytes being equally likely
        assert math.log(values["after"]["perplexity"]) == pytest.approx(values["after"]["loss"])
        assert 1 < values["after"]["perplexity"] < 258
    else:
        assert values["data"]["class_names"] == list(WORDS)
    assert report.read_result(tmp_path / "run" / "result.json")["examples"] == values["examples"]
    page = (tmp_path / "run" / "report.html").read_text()
    for chart in values["examples"]:
        assert chart["title"] in page and chart["kind"] == "passages"
        assert [caption for caption, _ in chart["passages"]][-1] == "truth"


@pytest.mark.filterwarnings("ignore:dhp:UserWarning")  # one epoch is too short for its search
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dhp", ("epochs=1",)),
        ("metapruning", ("generations=1", "population=9", "images=16")),
        ("pass", ("prompt=none", "steps=4", "snapshots=1")),
        ("lookahead", ()),
        ("activation", ()),
    ],
)
@pytest.mark.parametrize("task", MODELS)
def test_methods_of_every_kind_work(task, method, options, tmp_path):
    budget = Sparsity(0.5) if method == "lookahead" else Budget(macs=0.5)
    values = pruned(task, tmp_path, method, budget, options=options).values
    assert values["verified"]["max_abs_error"] < 1e-6 and values["after"][KEY[task]] > 0


def test_pass_puts_no_visual_prompt_on_text(tmp_path):
    with pytest.raises(UserError, match="prompt=none"):
        pruned("lm", tmp_path, "pass")
    assert not (tmp_path / "run").exists()


def test_the_examples_are_test_texts_and_their_answers_are_true(tmp_path):
    found = pruned("text", tmp_path)
    task = made("text", tmp_path)
    assert found.values["examples"]
    for chart in found.values["examples"]:
        number = int(chart["title"].split(":")[0].removeprefix("Test text ")) - 1
        x, y = task.data.test.read(np.array([number]))
        with torch.no_grad():
            shares = found.model.eval()(**x).softmax(1)[0]
        shown = dict(chart["passages"])
        assert shown["text"] == task.tokenizer.join(x["input_ids"][0].tolist())
        assert shown["truth"] == list(WORDS)[int(y)]
        likeliest = list(WORDS)[int(shares.argmax())]
        assert shown["answer of the smaller model"] == f"{likeliest} ({100 * shares.max():.0f} %)"


def test_the_guesses_shown_are_the_models_own(tmp_path):
    found = pruned("lm", tmp_path)
    task = LanguageModelling(found.model.eval(), load_blocks(spec_of("lm", tmp_path), length=64))
    for chart in found.values["examples"]:
        number = int(chart["title"].split(":")[0].removeprefix("Test block ")) - 1
        x, y = task.data.test.read(np.array([number]))
        with torch.no_grad():
            output = found.model(**x)
        before, _, (caption, guess), truth = chart["passages"]
        assert guess == task.tokenizer.join(output[0, -32:].argmax(1).tolist())
        assert truth[1] == task.tokenizer.join(y[0, -32:].tolist())
        assert before[1] == task.tokenizer.join(x["input_ids"][0, :33].tolist())
        stated = float(caption.rpartition(" ")[2])
        assert stated == pytest.approx(float(F.cross_entropy(output[0], y[0]).exp()), abs=0.006)


def test_perplexity_is_over_all_tokens_that_count(tmp_path):
    task = made("lm", tmp_path)
    inputs, targets = task.data.test.read(np.arange(len(task.data.test)))
    targets = targets.clone()
    targets[0, 3:] = IGNORED
    split = Split(task.data.test.source, targets.numpy(), np.arange(len(targets)))
    with torch.no_grad():
        shares = task.model.eval()(**inputs).log_softmax(-1)
    losses = [-shares[i, t, targets[i, t]] for i, t in (targets != IGNORED).nonzero().tolist()]
    found = task.evaluate(task.model, split)
    assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_a_hopeless_perplexity_is_infinite(tmp_path):
    task = made("lm", tmp_path)
    task.model.linear.bias.data[257] = 1e5  # never the answer inside of a text
    assert task.evaluate(task.model, task.data.test)["perplexity"] == math.inf


def test_padding_changes_nothing_in_loss_metric_and_scores(tmp_path):
    task = made("text", tmp_path)
    model, split = task.model.eval(), task.data.train
    graph = task.graph
    alone = [split.read(np.array([at])) for at in range(len(split))]
    with torch.no_grad():
        losses = [F.cross_entropy(model(**x), y) for x, y in alone]
    found = task.evaluate(model, split)
    assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert found["accuracy"] == sum(bool(model(**x).argmax(1) == y) for x, y in alone) / len(split)
    together = split.read(np.arange(8))
    assert not together[0]["attention_mask"].all()
    wide = {name: F.pad(value, (0, 20)) for name, value in together[0].items()}
    first, second = (
        scores.activation(model, graph, [(x, together[1])], normalize="none") for x in (together[0], wide)
    )
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)
    by_hand = torch.stack([
        F.gelu(model.blocks[0].up(model.blocks[0].norm2(hidden(model, x)))).abs().sum((0, 1)) for x, _ in alone[:8]
    ]).sum(0) / sum(x["input_ids"].numel() for x, _ in alone[:8])  # fmt: skip
    torch.testing.assert_close(first["blocks.0.up"], by_hand, rtol=1e-4, atol=1e-6)


def hidden(model, x):
    """The stream before the MLP of the first block, of a text without padding."""
    stream = model.embedding(x["input_ids"])
    return stream + model.blocks[0].attention(model.blocks[0].norm1(stream))


@pytest.mark.parametrize("task", MODELS)
def test_what_has_no_target_is_neither_learned_nor_distilled(task, tmp_path):
    task = made(task, tmp_path)
    _, target = task.data.train.read(np.arange(4))
    shape = (*target.shape, 258)
    target = target.clone()
    target.view(-1)[1::2] = IGNORED
    counts = target != IGNORED
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    teacher = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    loss, distance = task.loss(output, target), task.distil(output, teacher, 2.0, target)
    assert loss.item() == pytest.approx(F.cross_entropy(output[counts], target[counts]).item())
    ours, theirs = (each[counts].div(2).log_softmax(-1) for each in (output, teacher))
    apart = (theirs.exp() * (theirs - ours)).sum(-1).mean() * 4
    assert distance.item() == pytest.approx(apart.item(), rel=1e-5)
    (loss + distance).backward()
    assert not output.grad[~counts].any() and output.grad[counts].any()
    assert task.distil(teacher, teacher, 2.0, target).item() == pytest.approx(0, abs=1e-6)
    nothing = torch.full_like(target, IGNORED)
    assert task.loss(output, nothing).item() == task.distil(output, teacher, 1.0, nothing).item() == 0


def test_recovery_distils_from_the_base(tmp_path):
    recovery = pruned("lm", tmp_path).values["settings"]["recovery"]
    assert (recovery["distill_weight"], recovery["optimizer"]) == (0.5, "adamw")


@pytest.mark.parametrize("task", MODELS)
def test_a_finished_run_builds_its_original_again(task, tmp_path):
    values = pruned(task, tmp_path).values
    assert (values["input"]["vocabulary"], values["input"]["length"]) == (258, 64)
    model = reopen_task(tmp_path / "run", values).model
    assert prunus.load(tmp_path / "run", model).linear.out_features == model.linear.out_features


@pytest.mark.parametrize("task", MODELS)
def test_a_finished_run_answers_texts_and_is_exported(task, tmp_path):
    values = pruned(task, tmp_path).values
    saved, file = prunus.load(tmp_path / "run"), tmp_path / "a.txt"
    file.write_text("the cat sat on the mat and " * 5)
    (found,) = saved.predict([file], top=2)
    x = saved.read(file)
    assert x["input_ids"].shape == (1, 64)
    with torch.no_grad():
        scores = saved.model(**x)[0].softmax(-1)
    shares = scores if task == "text" else scores[-1]
    assert [each.probability for each in found] == pytest.approx(shares.sort(descending=True)[0][:2].tolist())
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is no text in UTF-8"):
        saved.predict([file])
    assert any("model.pt2" in line for line in export_run(tmp_path / "run", values))


def test_a_task_made_in_python_runs_too(tmp_path):
    task = made("text", tmp_path, recipe_fields={"lr": 1e-2, "batch_size": 8, "precision": "no"})
    values = prunus.prune(
        task=task, method="taylor", out=tmp_path / "run", settings=Settings(epochs=1)
    ).values
    assert values["settings"]["recovery"]["lr"] == 1e-2 and not values["history"]["base"]


def test_the_tokenizer_of_a_folder_is_used(tmp_path):
    pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path / "words")
    options = ("length=16", f"tokenizer={tmp_path / 'words'}")
    values = pruned("text", tmp_path, task_options=options).values
    assert values["input"]["vocabulary"] == 22 and values["data"]["tokens"].startswith("tokenizer.json ")
    shown = dict(values["examples"][0]["passages"])["text"].split()
    assert set(shown) <= {word for words in WORDS.values() for word in words}


def other_targets(task, value):
    """The same task with one target everywhere."""
    part = task.data.train
    whole = np.full_like(part.labels, value)
    return task.with_data(replace(task.data, train=replace(part, labels=whole)))


class Positional(nn.Module):
    """A decoder whose places are numbers from 1 on, as RoBERTa's."""

    def __init__(self, size: int):
        super().__init__()
        self.inner, self.places = decoder(length=64), nn.Embedding(size, 16)

    def forward(self, input_ids):
        return self.inner(input_ids) + self.places(torch.arange(1, input_ids.shape[1] + 1)).sum()


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("lm", decoder(vocabulary=200), r"the tokenizer \(bytes\) has 258 tokens, but the model was made for 200"),
        ("lm", decoder(vocabulary=50_000), r"made for 50000: .* Put the model's own tokenizer\.json into its folder"),
        ("lm", decoder(length=31), "the model has 31 positions, but the data have texts of 32 tokens; give --length"),
        ("lm", Positional(32), "the model has 32 positions, but the data have texts of 32 tokens"),
        ("text", encoder(length=8), "the model has 8 positions, but the data have texts of 40 tokens; give --length 8"),
        ("text", encoder(length=64, classes=5), r"scores of shape \(2, 5\), but .* has 3 classes: expected \(2, 3\)"),
        ("lm", Constant(2, 32, 100), r"scores of shape \(2, 32, 100\); expected \(2, 32, at least 258\), because"),
        ("lm", Constant(258), r"answers 2 texts of 32 tokens with the shape \(258,\); expected scores \(2, \.\.\."),
        ("lm", encoder(length=64), r"called with input_ids \(2, 32\) it raises TypeError: .*attention_mask"),
        ("lm", nn.Identity(), "it raises TypeError"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(task, model, message, tmp_path):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=f"(?s){message}"):
        prunus.prune(task=made(task, tmp_path, model), method="magnitude", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("task", MODELS)
def test_targets_that_count_nowhere_are_refused(task, tmp_path):
    task = other_targets(made(task, tmp_path), IGNORED)
    with pytest.raises(UserError, match=r"all targets of 'train' in .* are -100, which counts nowhere"):
        prunus.prune(task=task, method="magnitude", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 32}, "texts are no images .*, so image_size=32 has no meaning"),
        ({"task_options": ("length=0",)}, "length should be a finite number from 1|whole number from 1"),
        ({"task_options": ("length=8", "label_column=kind")}, "unknown option of task lm 'label_column'"),
        ({"task_options": ("length=90000",)}, "but a block of 90000 takes 90001; give more text"),
        ({"task_options": ("tokenizer=nowhere",)}, "nowhere should be the folder of a tokenizer"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        pruned("lm", tmp_path, **changes)
    assert not (tmp_path / "run").exists()


def test_a_config_s_positions_are_asked_first(tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = find_tokenizer(write_tokenizer(tmp_path / "words"))
    model = decoder(vocabulary=22)
    model.config = type("Config", (), {"max_position_embeddings": 16})()
    data = load_blocks(spec_of("lm", tmp_path), tokenizer, length=24)
    with pytest.raises(UserError, match="the model has 16 positions, but the data have texts of 24 tokens"):
        LanguageModelling(model, data, tokenizer=tokenizer).check(model)
