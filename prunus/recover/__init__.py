"""Recovery: what brings quality back after a cut.

Its files, in the order in which to read them:

    norms       statistics of batch norms, renewed on data
    finetune    training on, taught by the original
"""

from prunus.recover.finetune import recover
from prunus.recover.norms import renew_norms, renewing_batches

__all__ = [
    "recover",
    "renew_norms",
    "renewing_batches",
]
