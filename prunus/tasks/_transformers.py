"""Training of transformers, where a task has recipes for convolutional networks."""

from torch import nn

from prunus.train import Recipe

RATES = {"scratch": 1e-3, "tune": 5e-5, "recover": 2e-4}


def is_transformer(model: nn.Module) -> bool:
    """Decide whether a model is trained as a transformer.

    Its features are normalised by layers (LayerNorm, RMSNorm), not by batches, and more than half of its numbers are in
    matrices. That holds for ViT, Swin and BERT, also for ConvNeXt, which is trained as they are; not for ResNet, VGG
    or MobileNet, whatever the size of their classifier.

    Args:
        model: The model.

    Returns:
        Whether both hold.
    """
    normed = any(isinstance(module, nn.LayerNorm | nn.RMSNorm) for module in model.modules())
    sizes = [(parameter.dim(), parameter.numel()) for parameter in model.parameters()]
    return normed and 2 * sum(size for dims, size in sizes if dims == 2) > sum(size for _, size in sizes)


def for_transformers(recipe: Recipe, purpose: str) -> Recipe:
    """Return a recipe with AdamW, the usual weight decay of 0.05 and clipped gradients, otherwise unchanged.

    Source of optimiser and decay: Touvron et al., DeiT, arXiv:2012.12877, table 9; the rates are ours.

    Args:
        recipe: A recipe for convolutional networks.
        purpose: "scratch", "tune" or "recover".

    Returns:
        The recipe.
    """
    return recipe.adapt(optimizer="adamw", lr=RATES[purpose], weight_decay=0.05, clip_norm=1.0)
