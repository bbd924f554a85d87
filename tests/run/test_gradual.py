"""Pruning while a model is trained: in one's own loop, in transformers' Trainer and in Lightning."""

import importlib.util

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import FileError, UserError
from prunus.export import load_keep
from prunus.selection import Selection
from tests.lib.models import imported_beside_torchvision, torchvision_models

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
LIMITS = {2: prunus.Budget(params=0.8), 5: prunus.Budget(params=0.5)}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))


def step(model, optimizer):
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def trained(gradual, steps=8, model=None, first=1):
    model = network() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for number in range(first, steps + 1):
        step(model, optimizer)
        gradual.update(model, number, optimizer)
    return model


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------- one's own loop
def test_cuts_are_made_at_their_steps_to_shares_of_the_original():
    gradual = prunus.Gradual(X[:1], LIMITS)
    model = trained(gradual)
    assert [cut.step for cut in gradual.cuts] == [2, 5]
    whole = size(network())
    assert size(model) <= 0.5 * whole < size(model) + 60  # at most one unit less than it may be
    assert sum(cut.units for cut in gradual.cuts) == 56 - sum(map(len, gradual.keep.values()))


def test_what_is_left_is_named_in_units_of_the_original(tmp_path):
    """With no training between the cuts, the small model is a part of the original."""
    model, gradual = network(), prunus.Gradual(X[:1], LIMITS)
    for number in (2, 5):
        assert gradual.update(model, number) is not None
    original = network()
    expected = prunus.shrink(original, gradual.graph, gradual.keep)
    assert torch.equal(model(X), expected(X))
    prunus.save(tmp_path, model, gradual.keep, gradual.graph)
    assert torch.equal(prunus.load(tmp_path, network())(X), model(X))


def test_units_that_are_gone_stay_gone_and_floors_count_the_originals_units():
    first, second = [], []
    gradual = prunus.Gradual(
        X[:1], {1: prunus.Budget(params=0.6), 2: prunus.Budget(params=0.35)}, selection=Selection(floor=0.5)
    )
    model = network()
    gradual.update(model, 1)
    first = gradual.keep
    gradual.update(model, 2)
    second = gradual.keep
    assert all({*second[axis]} <= {*first[axis]} for axis in first)
    assert all(len(second[axis]) >= gradual.graph.axes[axis].size / 2 for axis in second)


def test_scores_are_asked_of_the_model_as_it_is_at_each_cut():
    sizes = []

    def scores(model, graph):
        sizes.append([axis.size for axis in graph.axes.values()])
        return prunus.scores.magnitude(model, graph)

    trained(prunus.Gradual(X[:1], LIMITS, scores=scores))
    assert sizes[0] == [32, 24] and sizes[1] != sizes[0]


def test_of_several_cuts_that_are_due_the_last_is_made():
    gradual, model = prunus.Gradual(X[:1], LIMITS), network()
    assert gradual.update(model, 1) is None
    assert gradual.update(model, 7).step == 7
    assert gradual.update(model, 8) is None and len(gradual.cuts) == 1


def test_a_restored_plan_goes_on():
    whole = prunus.Gradual(X[:1], LIMITS)
    halfway = trained(whole, steps=3)
    again, model = prunus.Gradual(X[:1], LIMITS), network()
    again.restore(model, whole.keep, 3)
    model.load_state_dict(halfway.state_dict())
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (halfway, model)]
    for plan, each, optimizer in ((whole, halfway, optimizers[0]), (again, model, optimizers[1])):
        for number in range(4, 8):
            step(each, optimizer)
            plan.update(each, number, optimizer)
    assert whole.keep == again.keep
    assert torch.equal(halfway(X), model(X))


def test_an_axis_down_to_one_unit_stays_known():
    """A single unit would be no axis in a trace of the small model."""
    limits = {step: prunus.Budget(params=share) for step, share in ((1, 0.28), (2, 0.2), (3, 0.1))}
    scores = {"0": torch.arange(32.0), "2": torch.arange(24.0) - 100}

    def prefer_the_first(model, graph):
        return {name: scores[name][: axis.size] for name, axis in graph.axes.items()}

    selection = Selection(floor=1, round_to=1)
    gradual, model = prunus.Gradual(X[:1], limits, scores=prefer_the_first, selection=selection), network()
    for number in limits:
        gradual.update(model, number)
    assert len(gradual.keep["2"]) == 1 and len(gradual.keep["0"]) < 32 and len(gradual.cuts) == 3
    assert torch.equal(model(X), prunus.shrink(network(), gradual.graph, gradual.keep)(X))


def test_a_model_that_something_else_has_changed_is_refused():
    gradual = prunus.Gradual(X[:1], LIMITS)
    trained(gradual, steps=2)
    with pytest.raises(FileError, match=r"this model is not the one that was traced"):
        gradual.update(network(), 5)


@pytest.mark.parametrize("limits", [{}, {0: prunus.Budget(macs=0.5)}])
def test_a_plan_without_steps_is_refused(limits):
    with pytest.raises(UserError, match="limits should give a budget for at least one step from 1 on"):
        prunus.Gradual(X[:1], limits)


# --------------------------------------------------------------------------- transformers' Trainer
class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        ids = (torch.arange(6) * (index % 5) + index) % 16
        return {"input_ids": ids, "labels": ids}


def llama():
    transformers = pytest.importorskip("transformers", reason="the model is from transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=16, num_hidden_layers=2, bos_token_id=0, eos_token_id=1, **sizes)
    )


def run_trainer(folder, gradual=None, model=None, resume=None, **options):
    torchvision_models()  # transformers imports it
    transformers = pytest.importorskip("transformers", reason="the trainer is from transformers")
    model = llama() if model is None else model
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=8,
        save_steps=4,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        **quiet,
        **options,
    )
    callbacks = [] if gradual is None else [prunus.trainer_callback(gradual)]
    trainer = transformers.Trainer(model, arguments, train_dataset=Examples(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rates(trainer):
    return [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]


WITHIN = Selection(freeze=("width",))  # a hidden size that heads do not divide is refused by the config
IDS = {"input_ids": torch.arange(6)[None]}


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}, {"bf16": True}]
)
def test_the_trainer_goes_on_with_the_small_model(options, tmp_path):
    gradual = prunus.Gradual(IDS, LIMITS, selection=WITHIN)
    dense, pruned = (
        run_trainer(tmp_path / "a", **options),
        run_trainer(tmp_path / "b", gradual, **options),
    )
    assert [cut.step for cut in gradual.cuts] == [2, 5]
    assert size(pruned.model) <= 0.5 * size(dense.model)
    assert rates(pruned) == rates(dense) and len(rates(pruned)) == 8
    losses = [
        [row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (dense, pruned)
    ]
    assert losses[0][:2] == losses[1][:2] and losses[0][2:] != losses[1][2:]
    assert all(torch.tensor(losses[1]).isfinite())
    held = {id(parameter) for group in pruned.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in pruned.model.parameters()}
    for parameter in pruned.model.parameters():
        assert pruned.optimizer.state[parameter]["exp_avg"].shape == parameter.shape


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_trainer_that_was_interrupted_ends_as_one_that_was_not(tmp_path):
    gradual, again = (
        prunus.Gradual(IDS, LIMITS, selection=WITHIN),
        prunus.Gradual(IDS, LIMITS, selection=WITHIN),
    )
    whole = run_trainer(tmp_path, gradual)
    checkpoint = tmp_path / "checkpoint-4"
    model = llama()
    again.restore(model, load_keep(checkpoint / "pruned"), 4)
    resumed = run_trainer(tmp_path, again, model, resume=str(checkpoint))
    assert gradual.keep == again.keep
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    saved = prunus.load(tmp_path / "checkpoint-8" / "pruned", llama())
    assert torch.equal(saved.eval()(**IDS).logits, whole.model.eval()(**IDS).logits)


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_cut_that_transformers_could_not_save_is_said_at_once(tmp_path):
    width = Selection(round_to=1, cap={"*": 0, "model.layers.0.self_attn.o_proj": 1})  # 15, with 4 heads
    gradual = prunus.Gradual(IDS, {2: prunus.Budget(params=0.96)}, selection=width)
    with pytest.raises(UserError, match=r"could not save .* hidden size .*freeze=\["):
        run_trainer(tmp_path, gradual)


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_trainer_that_would_load_a_checkpoint_of_another_size_is_refused(tmp_path):
    options = {"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"}
    with pytest.raises(UserError, match="does not go with load_best_model_at_end"):
        run_trainer(tmp_path, prunus.Gradual(IDS, LIMITS, selection=WITHIN), **options)


# ---------------------------------------------------------------------------------------- Lightning
def lightning_run(gradual, network_name, folder):
    imported_beside_torchvision("torchmetrics")  # which lightning imports
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.rates = network(), []

        def forward(self, x):
            return self.network(x)

        def training_step(self, batch, number):
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return self(batch[0]).square().mean()

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_checkpointing=False,
        callbacks=[prunus.lightning_callback(gradual, network_name)],
        default_root_dir=folder,
        **quiet,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=8)
    trainer.fit(module, data)
    return module, trainer


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("name", ["network", ""])
def test_lightning_goes_on_with_the_small_network(name, tmp_path):
    gradual = prunus.Gradual(X[:1], LIMITS)
    module, trainer = lightning_run(gradual, name, tmp_path)
    assert [cut.step for cut in gradual.cuts] == [2, 5]
    assert size(module.network) <= 0.5 * size(network())
    assert module.rates == [0.01 * 0.5 ** (number // 2) for number in range(8)]
    for parameter in module.parameters():
        assert trainer.optimizers[0].state[parameter]["exp_avg"].shape == parameter.shape
    trainer.save_checkpoint(tmp_path / "state.ckpt", weights_only=False)
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)["callbacks"]["prunus"]
    assert state == {"keep": gradual.keep, "step": 5}


@pytest.mark.parametrize(
    ("make", "package"),
    [(prunus.trainer_callback, "transformers"), (prunus.lightning_callback, "lightning")],
)
def test_a_missing_package_is_named(make, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match="pip install"):
        make(prunus.Gradual(X[:1], LIMITS))
