"""Transformers are known by their norms and matrices, and trained with AdamW where tasks advise SGD otherwise."""

import pytest
import torch
from torch import nn

from prunus import zoo
from prunus.tasks import Classification
from prunus.tasks._transformers import is_transformer
from prunus.testing.networks import tiny_task
from tests.lib.models import imported_beside_torchvision

SHAPE = (3, 32, 32)
KNOWN = {"vit_tiny": True, "resnet20": False, "vgg16_bn": False, "mobilenet_v2": False, "densenet40": False}
TORCHVISION = {
    **dict.fromkeys(("vit_b_16", "swin_t", "swin_v2_t", "convnext_tiny"), True),
    **dict.fromkeys(("resnet50", "vgg16", "alexnet", "mobilenet_v3_large", "efficientnet_b0"), False),
}


@pytest.mark.parametrize("name", KNOWN)
def test_networks_of_the_zoo(name):
    with torch.device("meta"):
        assert is_transformer(zoo.build(name, classes=10, in_shape=SHAPE)) == KNOWN[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision(name):
    models = imported_beside_torchvision("torchvision.models")
    with torch.device("meta"):
        assert is_transformer(getattr(models, name)(weights=None)) == TORCHVISION[name]


def test_matrices_alone_or_norms_of_layers_alone_are_none():
    assert not is_transformer(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)))
    assert not is_transformer(nn.Sequential(nn.Conv2d(3, 64, 3), nn.LayerNorm(8), nn.Linear(8, 8)))
    assert is_transformer(nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 8)))


@pytest.mark.parametrize(("purpose", "lr"), [("scratch", 1e-3), ("tune", 5e-5), ("recover", 2e-4)])
def test_a_transformer_is_advised_adamw_and_others_sgd(purpose, lr):
    def advised(network, **fields):
        task = tiny_task(network)
        return Classification(task.model, task.data, fields).recipe(purpose)

    recipe, usual = advised("attending"), advised("residual")
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.clip_norm) == ("adamw", lr, 0.05, 1.0)
    assert (usual.optimizer, usual.clip_norm) == ("sgd", None)
    assert recipe.epochs == usual.epochs and recipe.distill_weight == usual.distill_weight
    assert advised("attending", optimizer="sgd", lr=0.5).lr == 0.5  # the user's own goes before that
