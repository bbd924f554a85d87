"""Zeros in the forms that torch can compute with: CSR matrices, and semi-structured (2:4) tensors.

Both take a finished model, whose zeros are plain numbers in its weights (`masks.finalise`), and give a copy of it in
evaluation form: it computes the same and can no longer be trained. Only linear layers are changed, for torch has no
kernels for other sparse weights. Whether it pays is another question: `prunus bench` measures it.
"""

import warnings

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor, _semi_structured_conversions

from prunus.errors import UserError
from prunus.sparse.patterns import matrix
from prunus.surgery import copies

TILE = (64, 128)  # rows and columns that torch's conversion needs multiples of, whatever the type


class CsrLinear(nn.Module):
    """A linear layer whose weight (outputs, inputs) is a CSR matrix. Inputs (..., inputs) in float32 or float64."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(_csr(layer.weight.detach()), requires_grad=False)
        self.bias = (
            None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)"""
        out = torch.mm(self.weight, x.reshape(-1, self.in_features).t()).t()
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        share = 1 - self.weight.values().numel() / (self.in_features * self.out_features)
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, zeros={share:.3f}"


def _csr(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return weight.to_sparse_csr()


def to_csr(model: nn.Module, min_sparsity: float = 0.7) -> nn.Module:
    """A copy whose linear layers with at least this share of zeros hold CSR matrices; others stay as they are.

    The default is where products with CSR begin to be faster than dense ones (4096 x 4096, batch 64, one thread).
    """
    model = copies.clone(model, {}).eval()
    new: dict[nn.Linear, CsrLinear] = {}  # a layer may stand in several places
    for path, layer in _linear_layers(model).items():
        if (layer.weight == 0).float().mean() >= min_sparsity:
            new[layer] = new.get(layer) or CsrLinear(layer)
            parent, _, name = path.rpartition(".")
            if not path:
                return new[layer]
            setattr(model.get_submodule(parent), name, new[layer])
    return model


# --------------------------------------------------------------------------------------- semi-structured
def check_semi_structured(weight: Tensor, dim: int = 1, name: str = "this weight") -> None:
    """Raise UserError if torch's semi-structured layout cannot hold `weight`: it is not 2:4. Runs on any device.

    The weight, as the matrix it is multiplied as (inputs along `dim`, see `patterns`), goes through torch's own
    conversion to values and indices and back, and must come out the same; shapes are filled up with zeros.
    """
    rows = matrix(weight.detach(), dim).flatten(1) if weight.dim() > 1 else weight.detach()[None]
    if weight.shape[dim] % 4:
        raise UserError(
            f"{name}: {weight.shape[dim]} inputs to each output, not a multiple of 4, so not 2:4."
        )
    whole = (rows != 0).to(torch.bfloat16)  # only where the zeros are matters; the conversion takes few types
    whole = nn.functional.pad(whole, (0, -rows.shape[1] % TILE[1], 0, -rows.shape[0] % TILE[0]))
    back = _semi_structured_conversions.sparse_semi_structured_to_dense_cutlass(
        *_semi_structured_conversions.sparse_semi_structured_from_dense_cutlass(whole)
    )
    if not torch.equal(back, whole):
        crowded = int(((rows != 0).view(-1, 4).sum(1) > 2).sum())
        raise UserError(
            f"{name} is not 2:4: {crowded} of {rows.numel() // 4} groups of 4 inputs hold more than 2 numbers that "
            "are not zero. Prune it with pattern 2:4, and finalise the masks first."
        )


def to_semi_structured(model: nn.Module) -> nn.Module:
    """A copy whose linear layers with 2:4 weights hold torch's semi-structured tensors, for sparse tensor cores.

    Needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer, and weights in float16 or bfloat16 whose sides
    are multiples that torch's kernels ask for. Raises UserError, saying what is needed, and why no layer could be
    changed if so.
    """
    layers = _linear_layers(model)
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(
            f"semi-structured tensors need an NVIDIA GPU of compute capability 8.0 (Ampere) or newer; this model is "
            f"on {device}. Move it there (model.cuda().half()), or keep the zeros as they are: the model is the same."
        )
    model = copies.clone(model, {}).eval()
    refused, done = {}, 0
    for path in layers:
        layer = model.get_submodule(path)
        if isinstance(layer.weight, SparseSemiStructuredTensor):
            continue  # the same layer in another place
        try:
            check_semi_structured(layer.weight, name=path)
            if layer.weight.dtype not in (torch.float16, torch.bfloat16):
                raise UserError(f"{path}: its weight is {layer.weight.dtype}; expected float16 or bfloat16.")
            layer.weight = nn.Parameter(_semi_structured(layer.weight.detach()), requires_grad=False)
            done += 1
        except (UserError, RuntimeError) as error:  # torch's own checks of shapes
            refused[path] = str(error)
    if not done:
        whys = "; ".join(list(refused.values())[:3]) or "it has none"
        raise UserError(f"no linear layer of this {type(model).__name__} can be semi-structured: {whys}")
    return model


def _semi_structured(weight: Tensor) -> SparseSemiStructuredTensor:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The PyTorch API of SparseSemiStructuredTensor is in prototype"
        )
        return torch.sparse.to_sparse_semi_structured(weight.contiguous())


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """By path. Of the class itself: others may be read by what they are part of (attention reads its projection)."""
    modules = model.named_modules(remove_duplicate=False)
    return {path: module for path, module in modules if type(module) is nn.Linear}
