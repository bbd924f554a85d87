"""Runs: a model, data and a budget become a folder that holds the smaller model.

Its files, in the order in which to read them:

    recipes     what a user asks of the trainings of a run
    settings    the settings of a run, and the stage that reads each first
    lock        one writer a folder
    folder      a run's folder: its settings, finished stages and log, so that a killed run can be resumed
    records     the schemas of the stages' records
    plan        how many epochs a recovery takes whose time was given
    checks      checks that a method's choice meets the limit
    loading     models of a run, read from their files
    watching    a split that reports how much of it has been read
    repairing   repairing the pruned model, and whether it is better for it
    steps       pruning in steps, with repair and training between them
    stages      the stages, each from files to files
    provenance  data.json: what the data of a run were
    prepare     loading and checking everything before anything is trained
    result      result.json
    advice      the method that `auto` stands for
    from_base   a run that begins with the base of another
    pipeline    prune, train_base, preview
    reopen      the task of a finished run, without its data or with them
    saved       a finished run, ready to use
    bench       the milliseconds that a finished run gains
    export      exporting a finished run
    eight_bits  its model in 8 bits, and how good that is
    gradual     pruning while a model is trained, in anyone's loop
    trainers    callbacks for transformers' Trainer and for Lightning
    arms        what is compared: methods, budgets, seeds
    orders      the pieces of work of a comparison
    workers     carrying them out, here or in processes
    standing    compare.json
    board       compare
"""

from prunus.run.advice import resolve_auto
from prunus.run.board import METHODS, Comparison, compare
from prunus.run.eight_bits import quantise_run
from prunus.run.export import export_run
from prunus.run.folder import RunFolder
from prunus.run.gradual import Cut, Gradual
from prunus.run.lock import sole_writer
from prunus.run.pipeline import preview, prune
from prunus.run.provenance import compare_data
from prunus.run.saved import Saved, load_run, read_result
from prunus.run.settings import Settings
from prunus.run.trainers import lightning_callback, trainer_callback
from prunus.tasks import Prediction

__all__ = [
    "METHODS",
    "Comparison",
    "Cut",
    "Gradual",
    "Prediction",
    "RunFolder",
    "Saved",
    "Settings",
    "compare",
    "compare_data",
    "export_run",
    "lightning_callback",
    "load_run",
    "preview",
    "prune",
    "quantise_run",
    "read_result",
    "resolve_auto",
    "sole_writer",
    "trainer_callback",
]
