"""Runs: a model, data and a budget become a folder that holds the smaller model.

Its files, in the order in which to read them:

    recipes     what a user asks of the trainings of a run
    settings    the settings of a run, and the stage that reads each first
    lock        one writer a folder
    folder      a run's folder: its settings, finished stages and log, so that a killed run can be resumed
    records     the schemas of the stages' records
    plan        how many epochs a recovery takes whose time was given
    checks      checks that a method's choice meets the limit
    stages      the five stages, each from files to files
    provenance  data.json: what the data of a run were
    prepare     loading and checking everything before anything is trained
    result      result.json
    pipeline    prune, preview
    reopen      the task of a finished run, without its data
    saved       a finished run, ready to use
    bench       the milliseconds that a finished run gains
    export      exporting a finished run
"""

from prunus.run.export import export_run
from prunus.run.folder import RunFolder
from prunus.run.lock import sole_writer
from prunus.run.pipeline import preview, prune
from prunus.run.provenance import compare_data
from prunus.run.saved import Saved, load_run, read_result
from prunus.run.settings import Settings
from prunus.tasks import Prediction

__all__ = [
    "Prediction",
    "RunFolder",
    "Saved",
    "Settings",
    "compare_data",
    "export_run",
    "load_run",
    "preview",
    "prune",
    "read_result",
    "sole_writer",
]
