"""Repair of models that lack blocks. Source: ours."""

import torch

import prunus
from prunus import zoo

X = torch.randn(1, 3, 32, 32)


def test_layers_after_a_skipped_block_are_fitted_to_the_original():
    """By their names in the original, which those of the small model are not."""
    torch.manual_seed(0)
    for name, keep in (
        ("resnet20", {"layer1.1:depth": [], "layer2.1:depth": [], "layer3.1.conv1": list(range(40))}),
        ("vit_tiny", {"blocks.1:depth": [], "blocks.2:depth": [], "blocks.4.attention:depth": []}),
    ):
        model = zoo.build(name).eval()
        graph = prunus.trace(model, X)
        inputs, unseen = [torch.randn(48, 3, 32, 32) for _ in range(2)], torch.randn(32, 3, 32, 32)
        small = prunus.shrink(model, graph, keep)
        before = {key: value.clone() for key, value in small.state_dict().items()}
        repaired = prunus.repair(model, graph, keep, inputs)
        with torch.no_grad():
            wanted = model(unseen)
            as_cut, fitted = (float((each(unseen) - wanted).norm()) for each in (small, repaired))
        assert fitted < 0.5 * as_cut
        assert repaired.state_dict().keys() == before.keys()


def test_a_model_whose_skipped_blocks_add_nothing_is_left_as_it_is():
    torch.manual_seed(0)
    model = zoo.build("vit_tiny").eval()
    with torch.no_grad():
        for layer in (model.blocks[3].attention.proj, model.blocks[3].down):
            layer.weight.zero_()
            layer.bias.zero_()
    keep = {"blocks.3:depth": []}
    graph = prunus.trace(model, X)
    small = prunus.shrink(model, graph, keep)
    repaired = prunus.repair(model, graph, keep, [torch.randn(8, 3, 32, 32)])
    for name, value in small.state_dict().items():
        assert torch.equal(value, repaired.state_dict()[name]), name
