"""Zeros in the forms that torch can compute with: CSR matrices, and semi-structured (2:4) tensors.

Both take a finished model, whose zeros are plain numbers in its weights (`masks.finalise`), and return a copy
for evaluation: it computes the same and can no longer be trained. Only linear layers are changed, because
torch has no kernels for other sparse weights. `prunus bench` measures whether that is faster.
"""

import warnings

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor, _semi_structured_conversions

from prunus.errors import UserError
from prunus.sparse.patterns import matrix
from prunus.surgery import copies

TILE = (64, 128)  # torch's conversion needs multiples of these rows and columns, for every type


class CsrLinear(nn.Module):
    """A linear layer whose weight (outputs, inputs) is a CSR matrix, for inputs in float32 or float64.

    Args:
        layer: The dense layer, whose weight and bias are copied.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(_csr(layer.weight.detach()), requires_grad=False)
        self.bias = (
            None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
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
    """Copy a model with CSR matrices in its sparse linear layers.

    Args:
        model: The finished model, which is left untouched.
        min_sparsity: The least share of zeros (0 to 1) of a layer that is changed. From the default on,
            products with CSR are faster than dense ones (4096 x 4096, batch size 64, one thread).

    Returns:
        The copy, in evaluation mode.
    """
    model = copies.clone(model, {}).eval()
    new: dict[nn.Linear, CsrLinear] = {}  # one layer may have several paths
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
    """Check that torch's semi-structured layout can hold a weight; runs on any device.

    The weight, as the matrix of its product (see patterns.py), passes through torch's own conversion to
    values and indices and back, and must remain the same. Shapes are padded with zeros.

    Args:
        weight: The weight, with at least one dimension.
        dim: The dimension of the inputs.
        name: Its name, for messages.

    Raises:
        UserError: The weight is not 2:4.
    """
    rows = matrix(weight.detach(), dim).flatten(1) if weight.dim() > 1 else weight.detach()[None]
    if weight.shape[dim] % 4:
        raise UserError(
            f"{name} is not 2:4: it has {weight.shape[dim]} inputs to each output, not a multiple of 4. "
            "Prune only layers that the pattern fits (patterns.unfit names the others)."
        )
    whole = (rows != 0).to(
        torch.bfloat16
    )  # only the places of zeros matter, and the conversion takes few types
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
    """Copy a model with torch's semi-structured tensors in its 2:4 linear layers, for sparse tensor cores.

    Args:
        model: The finished model, on an NVIDIA GPU of compute capability 8.0 (Ampere) or newer, with weights
            in float16 or bfloat16 whose sides are multiples that torch's kernels require; it is left
            untouched.

    Returns:
        The copy, in evaluation mode; layers that are not 2:4 stay as they are.

    Raises:
        UserError: The device does not serve, or no layer can be changed; the message says why.
    """
    layers = _linear_layers(model)
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(
            f"semi-structured tensors need an NVIDIA GPU of compute capability 8.0 (Ampere) or newer; this model is "
            f"on {device}. Move it there (model.cuda().half()), or keep the zeros as they are: the model is the same."
        )
    model = copies.clone(model, {}).eval()
    refused: dict[str, str] = {}
    done = 0
    for path in layers:
        layer = model.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        if isinstance(layer.weight, SparseSemiStructuredTensor):
            continue  # the same layer under another path
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
    """The linear layers by path; not subclasses, because attention reads the weight of its own."""
    modules = model.named_modules(remove_duplicate=False)
    return {path: module for path, module in modules if type(module) is nn.Linear}
