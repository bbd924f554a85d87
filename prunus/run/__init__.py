"""A run: a model, data and a budget become a folder with the smaller model in it.

Its files, in the order in which to read them:

    settings    what can be asked
    folder      what was asked, finished and logged, so that a killed run can be resumed
    checks      a choice keeps to what was asked for
    stages      the five stages, each from files to files
    prepare     load what is only named, and refuse early
    result      result.json
    pipeline    prune, preview
    bench       the milliseconds that a finished run gains
    export      export a finished run
"""

from prunus.run.export import export_run
from prunus.run.folder import Run
from prunus.run.pipeline import preview, prune
from prunus.run.settings import Settings

__all__ = [
    "Run",
    "Settings",
    "export_run",
    "preview",
    "prune",
]
