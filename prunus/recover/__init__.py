"""Recovery: a pruned network regains its quality.

Its files, in the order in which to read them:

    norms       renew_norms: the statistics of batch norms, estimated again on data
    finetune    recover: renewed norms, then fine-tuning with the unpruned network as the teacher
    pace        how many epochs of that fit into a time
"""

from prunus.recover.finetune import recover
from prunus.recover.norms import calibration_batches, renew_norms
from prunus.recover.pace import Pace, measure_pace

__all__ = [
    "Pace",
    "calibration_batches",
    "measure_pace",
    "recover",
    "renew_norms",
]
