"""A new task is one file in prunus/tasks, and no other edit: its options are the command's own."""

import json
import sys
from dataclasses import fields
from inspect import signature

import pytest

from prunus import tasks
from prunus.cli import commands, main
from prunus.cli.run_options import RunOptions
from prunus.cli.task_options import gather_task_options
from prunus.errors import UserError
from prunus.tasks import Options, Task, find_kind, kinds, own_task

NEW = '''"""Image classification that says no.

A task for a test.
"""

from dataclasses import dataclass

from prunus.tasks import _contract, classification


@dataclass(frozen=True, kw_only=True)
class Options(_contract.Options):
    """The options of contrary.

    Args:
        epochs_each: The number of epochs of every training.
        loud: Whether it says so.
    """

    epochs_each: int = 3
    loud: bool = False


def make(given, options):
    """Make it."""
    task = classification.make(given, classification.Options())
    task.recipe_fields = {"epochs": options.epochs_each, "batch_size": 128}
    return task
'''


@pytest.fixture
def contrary(tmp_path, monkeypatch):
    (tmp_path / "contrary.py").write_text(NEW)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    yield
    sys.modules.pop("prunus.tasks.contrary", None)


def test_every_task_holds_the_contract():
    assert "classification" in kinds() and not [name for name in kinds() if name.startswith("_")]
    of_the_command = {*signature(commands.run).parameters, *(field.name for field in fields(RunOptions))}
    of_the_command |= {*signature(commands.compare).parameters}
    for name in kinds():
        kind = find_kind(name)
        assert kind.doc and issubclass(kind.options_class, Options)
        kind.options_class()  # every option has a default
        assert not [field.name for field in fields(kind.options_class) if field.name in of_the_command]


def test_a_new_file_is_a_task_of_the_command_line(contrary, tmp_path, capsys):
    assert "contrary" in kinds()
    assert main(["tasks", "contrary"]) == 0
    said = capsys.readouterr().out
    assert "epochs_each" in said and "The number of epochs of every training." in said
    run = tmp_path / "run"
    arguments = ["run", "--task", "contrary", "--model", "zoo:digits_resnet", "--data", "digits"]
    assert main([*arguments, "--epochs-each", "1", "--method", "magnitude", "--out", str(run)]) == 0
    result = json.loads((run / "result.json").read_text())
    assert [len(result["history"][stage]) for stage in ("base", "recover")] == [1, 1]
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["task"], settings["task_options"]) == ("contrary", ["epochs_each=1"])
    assert (
        main([*arguments, "--epochs-each", "2", "--method", "magnitude", "--out", str(run), "--resume"]) == 2
    )
    assert "task_options" in capsys.readouterr().err


def test_a_wrong_option_of_a_task_is_refused(contrary, tmp_path, capsys):
    arguments = ["run", "--task", "contrary", "--model", "zoo:digits_resnet", "--data", "digits"]
    assert main([*arguments, "--epochs-each", "many", "--out", str(tmp_path / "run")]) == 2
    assert "option of task contrary: epochs_each should be int, not 'many'" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "run").exists()


def test_options_of_a_task_are_gathered(contrary):
    given = ["run", "--task=contrary", "--epochs-each=4", "--loud", "True", "--epochs", "3", "--out", "x"]
    assert gather_task_options(given) == [
        *("run", "--task=contrary", "--task-set", "epochs_each=4", "--task-set", "loud=True"),
        *("--epochs", "3", "--out", "x"),
    ]
    for same in (
        ["run", "--epochs-each", "4"],
        ["run", "--task", "my.own:task", "--loud", "1"],
        ["run", "--task"],
    ):
        assert gather_task_options(same) == same


def test_a_task_of_ones_own_is_made_with_the_seed():
    weights = [own_task("tests.lib.own_tasks:random_weights", seed).model.weight for seed in (0, 0, 1)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    assert isinstance(own_task("tests.lib.own_tasks:regression", 0), Task)
    with pytest.raises(UserError, match="unknown callable"):
        own_task("tests.lib.own_tasks:regresion", 0)
