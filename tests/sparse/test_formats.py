"""Sparse forms of a finished model: they compute the same, and are refused where they cannot be."""

import pytest
import torch
from torch import nn

from prunus.errors import UserError
from prunus.sparse import choose, formats
from prunus.sparse.patterns import NofM, n_of_m

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


class Mixed(nn.Module):
    """A convolution, linear layers inside and outside of a Sequential, one without bias, and attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.body = nn.Sequential(nn.Linear(16, 128, bias=False), nn.ReLU(), nn.Linear(128, 64))
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.body(self.conv(x).flatten(2).transpose(1, 2))
        return self.head(self.attention(x, x, x)[0].mean(1))


def pruned(model, sparsity, pattern=None):
    """The model with plain zeros in its linear weights."""
    layers = {n: p.detach() for n, p in model.named_parameters() if p.dim() == 2 and "attention" not in n}
    masks = choose({n: w.square() for n, w in layers.items()}, sparsity, pattern=pattern)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model.eval()


def test_csr_computes_the_same():
    model, x = pruned(Mixed(), 0.9), torch.randn(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparse = formats.to_csr(model, 0.8)
    assert type(sparse.body[0]) is formats.CsrLinear and type(sparse.head) is formats.CsrLinear
    assert sparse.body[0].weight.layout == torch.sparse_csr
    assert type(sparse.attention.out_proj) is type(model.attention.out_proj)
    with torch.no_grad():
        assert torch.allclose(sparse(x), model(x), atol=1e-6)
    assert "zeros=0.9" in str(sparse.body[2])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model itself stays"


def test_only_layers_with_enough_zeros_become_csr():
    model = pruned(Mixed(), 0.9)
    with torch.no_grad():
        model.head.weight.fill_(1)
    sparse = formats.to_csr(model, 0.8)
    assert type(sparse.head) is nn.Linear and type(sparse.body[0]) is formats.CsrLinear
    assert all(t.layout == torch.strided for t in formats.to_csr(Mixed(), 0.8).state_dict().values())


def test_a_model_that_is_one_linear_layer():
    layer = pruned(nn.Linear(64, 32), 0.9)
    x, sparse = torch.randn(5, 64), formats.to_csr(layer, 0.8)
    assert type(sparse) is formats.CsrLinear and torch.allclose(sparse(x), layer(x), atol=1e-6)


def test_a_layer_in_two_places_stays_one():
    layer = nn.Linear(32, 32)
    model = pruned(nn.Sequential(layer, nn.ReLU(), layer), 0.9)
    sparse = formats.to_csr(model, 0.8)
    assert sparse[0] is sparse[2] and type(sparse[2]) is formats.CsrLinear


@pytest.mark.parametrize(
    "shape", [(64, 128), (10, 64), (7, 12), (33, 100), (16, 8, 3, 3), (6, 4, 1, 1)], ids=str
)
@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(1, 4)], ids=str)
def test_two_of_four_passes_torchs_layout_check(shape, pattern):
    weight = torch.randn(shape)
    formats.check_semi_structured(weight * n_of_m(weight.square(), pattern))


@pytest.mark.parametrize("pattern", [NofM(3, 4), NofM(4, 8)], ids=str)
def test_others_do_not_pass(pattern):
    weight = torch.randn(64, 128)
    with pytest.raises(UserError, match=r"layer is not 2:4: .* groups of 4"):
        formats.check_semi_structured(weight * n_of_m(weight.square(), pattern), name="layer")


def test_one_number_too_many_is_found():
    """In any group, also where the matrix is not a whole tile."""
    for shape in ((64, 128), (10, 20)):
        for place in (0, 7, 131, shape[0] * shape[1] - 1):
            weight = torch.ones(shape) * n_of_m(torch.ones(shape), NofM(2, 4))
            formats.check_semi_structured(weight)
            flat = weight.view(-1)
            flat[place // 4 * 4 + 3] = 1e-30  # too small for half precision, and no zero
            with pytest.raises(UserError, match="1 of "):
                formats.check_semi_structured(weight)


def test_inputs_that_are_no_multiple_of_four():
    with pytest.raises(UserError, match="6 inputs"):
        formats.check_semi_structured(torch.zeros(8, 6))


def test_torchs_own_conversion_holds_a_pruned_model():
    """dense -> compressed -> dense with the values themselves."""
    from torch.sparse import _semi_structured_conversions as torchs

    model = pruned(Mixed().bfloat16(), 0.5, "2:4")
    for layer in (model.body[0], model.body[2]):
        weight = layer.weight.detach()
        whole = nn.functional.pad(weight, (0, -weight.shape[1] % 64))
        values, meta = torchs.sparse_semi_structured_from_dense_cutlass(whole)
        assert values.numel() == whole.numel() // 2
        assert torch.equal(torchs.sparse_semi_structured_to_dense_cutlass(values, meta), whole)


def test_without_a_gpu_it_says_what_is_needed():
    with pytest.raises(UserError, match=r"compute capability 8\.0 \(Ampere\) or newer; this model is on cpu"):
        formats.to_semi_structured(pruned(Mixed(), 0.5, "2:4"))


@cuda
def test_semi_structured_computes_the_same():
    model = pruned(Mixed(), 0.5, "2:4").cuda().half()
    x = torch.randn(4, 3, 10, 10, device="cuda", dtype=torch.half)
    sparse = formats.to_semi_structured(model)
    assert isinstance(sparse.body[2].weight, torch.sparse.SparseSemiStructuredTensor)
    assert type(sparse.head.weight) is nn.Parameter, "10 outputs do not fit"
    with torch.no_grad():
        assert torch.allclose(sparse(x), model(x), atol=1e-2)


@cuda
def test_dense_weights_are_refused_on_the_gpu_too():
    with pytest.raises(UserError, match=r"no linear layer .* is not 2:4"):
        formats.to_semi_structured(Mixed().cuda().half())
    with pytest.raises(UserError, match=r"expected float16 or bfloat16"):
        formats.to_semi_structured(pruned(Mixed(), 0.5, "2:4").cuda())
