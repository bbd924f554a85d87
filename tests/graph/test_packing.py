"""Models as training stacks pack them: the module inside is taken where it is exact, all else is refused in words."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import prunus
from prunus.errors import FileError, PrunusError, TraceError, UserError
from prunus.graph import plain_model
from tests.lib.models import torchvision_models
from tests.lib.nets import random_keep
from tests.lib.two_processes import launched

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# ---------------------------------------------------------------------------- what is unwrapped
WRAPPERS = {
    "compiled": torch.compile,
    "in several processes": DistributedDataParallel,
    "on several devices": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "both": lambda model: torch.compile(DistributedDataParallel(model)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_is_the_module_inside(name, one_process, tmp_path):
    plain = network()
    graph = prunus.trace(plain, X)
    keep, wrapped = random_keep(graph), WRAPPERS[name](network())
    expected = prunus.shrink(plain, graph, keep)
    assert prunus.trace(wrapped, X).axes.keys() == graph.axes.keys()
    small = prunus.shrink(wrapped, graph, keep)
    assert type(small) is nn.Sequential and torch.equal(small(X), expected(X))
    assert torch.equal(prunus.mask(wrapped, graph, keep)(X), prunus.mask(plain, graph, keep)(X))
    assert torch.equal(prunus.crop(wrapped, graph, keep, X), prunus.crop(plain, graph, keep, X))
    assert prunus.verify(wrapped, graph, keep, WRAPPERS[name](small)).holds
    assert torch.equal(prunus.repair(wrapped, graph, keep, [X])(X), prunus.repair(plain, graph, keep, [X])(X))
    data = [(X, torch.zeros(2))]
    for score in (
        prunus.scores.magnitude,
        prunus.scores.fpgm,
        lambda model, graph: prunus.scores.activation(model, graph, data),
        lambda model, graph: prunus.scores.taylor(model, graph, lambda out, _: out.sum(), data),
    ):
        got, wanted = score(wrapped, graph), score(plain, graph)
        assert all(torch.equal(got[axis], wanted[axis]) for axis in graph.axes)
    prunus.save(tmp_path, WRAPPERS[name](small), keep, graph)
    assert torch.equal(prunus.load(tmp_path, WRAPPERS[name](network()))(X), expected(X))


def test_an_optimiser_of_a_wrapped_model_is_carried_over(one_process):
    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(wrapped.parameters())
    wrapped(X).sum().backward()
    optimizer.step()
    graph = prunus.trace(wrapped, X)
    keep = random_keep(graph)
    small = prunus.shrink(wrapped, graph, keep)
    carried, _ = prunus.carry_over(graph, keep, wrapped, small, optimizer=optimizer)
    assert carried.state[small[2].weight]["exp_avg"].shape == small[2].weight.shape
    again = DistributedDataParallel(small)
    again(X).sum().backward()
    carried.step()


def test_checkpointing_by_torchs_wrapper_stays():
    model, plain = network(), network()
    model[0] = checkpoint_wrapper(model[0])
    graph = prunus.trace(model, X)
    assert [axis.size for axis in graph.axes.values()] == [8, 6]
    keep = {name: [0, 2, 3] for name in graph.axes}
    small = prunus.shrink(model, graph, keep)
    assert type(small[0]) is type(model[0])
    expected = prunus.shrink(plain, prunus.trace(plain, X), {"0": [0, 2, 3], "2": [0, 2, 3]})
    assert torch.equal(small(X), expected(X))


# ---------------------------------------------------------------------------------- sharded models
def test_a_sharded_model_is_refused_everywhere(one_process, tmp_path):
    model = network()
    graph = prunus.trace(model, X)
    keep, sharded = random_keep(graph), copy.deepcopy(model)
    fully_shard(sharded[0])
    fully_shard(sharded)
    for call in (
        lambda: prunus.trace(sharded, X),
        lambda: prunus.shrink(sharded, graph, keep),
        lambda: prunus.mask(sharded, graph, keep),
        lambda: prunus.scores.magnitude(sharded, graph),
        lambda: prunus.repair(sharded, graph, keep, [X]),
    ):
        with pytest.raises(
            UserError, match=r"0\.weight is spread over several processes .*get_model_state_dict"
        ):
            call()


def save_sharded(folder):
    """In two processes: shard a small model, take a step, and save it."""
    torch.distributed.init_process_group("gloo")
    model = network()
    graph = prunus.trace(model, X)
    keep = {"0": [0, 2, 5], "2": [1, 2, 3]}
    small = prunus.shrink(model, graph, keep)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    fully_shard(small[0], mesh=mesh)
    fully_shard(small, mesh=mesh)
    assert small[0].weight.to_local().shape != small[0].weight.shape
    prunus.save(folder, small, keep, graph)
    prunus.load(folder, network())  # in both processes: it is there when `save` returns
    with pytest.raises(
        FileError if mesh.get_rank() == 0 else PrunusError
    ):  # neither waits for the other for ever
        prunus.save(folder, small, {"0": [0], "2": [1]}, graph)


SCRIPT = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("packing", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.save_sharded({folder!r})
torch.distributed.destroy_process_group()
"""


def test_a_sharded_small_model_is_saved_whole(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(file=__file__, folder=str(tmp_path / "small")))
    launched([str(script)])
    model, keep = network(), {"0": [0, 2, 5], "2": [1, 2, 3]}
    expected = prunus.shrink(model, prunus.trace(model, X), keep)
    assert torch.equal(prunus.load(tmp_path / "small", network())(X), expected(X))


# ------------------------------------------------------------------------------------- offloaded
@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_model_is_refused_until_its_weights_are_back(where, tmp_path):
    import accelerate

    model, plain = network(), network()
    graph = prunus.trace(plain, X)
    keep = random_keep(graph)
    if where == "disk":
        accelerate.disk_offload(model, str(tmp_path))
    else:
        accelerate.cpu_offload(model, torch.device("cpu"))
    for call in (
        lambda: prunus.trace(model, X),
        lambda: prunus.shrink(model, graph, keep),
        lambda: prunus.scores.magnitude(model, graph),
    ):
        with pytest.raises(UserError, match=r"0\.weight is not in the model: accelerate has offloaded it"):
            call()
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert torch.equal(prunus.shrink(model, graph, keep)(X), prunus.shrink(plain, graph, keep)(X))


def test_a_model_without_weights_that_nobody_offloaded_is_traced():
    assert prunus.trace(network().to("meta"), X).axes.keys() == prunus.trace(network(), X).axes.keys()


# ------------------------------------------------------------------------------- packed weights
class Quantised(nn.Linear):
    pass


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(2, 2, dtype=torch.int32))


class Sharded(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


Quantised.__module__ = "torch.ao.nn.quantized.modules.linear"
Packed.__module__ = "gptqmodel.nn_modules.qlinear.torch"
Sharded.__module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"


class Halves(torch.Tensor):
    """A tensor that packs another one, as those of torchao do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return Halves(args[0].inner)
        raise NotImplementedError(func)


def with_weight(weight):
    model = network()
    model[2].weight = nn.Parameter(weight(model[2].weight.detach()), requires_grad=False)
    return model


PACKED = {
    "compiled inside": (
        lambda: nn.Sequential(torch.compile(network())),
        r"0 went through torch\.compile.*model\.0\._orig_mod",
    ),
    "scripted": (lambda: torch.jit.script(network()), r"scripted module .*Python model"),
    "quantised": (lambda: nn.Sequential(Quantised(3, 4)), r"0 is quantised .*then quantise the small one"),
    "quantised by a class of tensors": (lambda: with_weight(Halves), r"2\.weight is quantised \(Halves\)"),
    "quantised to bytes": (
        lambda: with_weight(lambda weight: weight.to(torch.uint8)),
        r"2\.weight is quantised \(torch\.uint8\)",
    ),
    "packed by a library": (lambda: nn.Sequential(Packed()), r"0 is quantised \(Packed\)"),
    "sharded": (lambda: Sharded(network()), r"wrapped in Sharded.*model\.module"),
    "sharded inside": (
        lambda: nn.Sequential(Sharded(network())),
        r"0 is wrapped in Sharded.*model\.0\.module",
    ),
    "no model": (lambda: torch.relu, "expected the model, an nn.Module"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("name", PACKED)
def test_a_packed_model_is_refused_and_what_to_give_is_said(name):
    make, words = PACKED[name]
    with pytest.raises(UserError, match=words):
        prunus.trace(make(), X)


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_a_model_that_a_library_quantised_is_named():
    torchvision_models()  # torchao imports what imports it
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao")
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    with pytest.raises(UserError, match=r"0\.weight is quantised \(Int8Tensor\)"):
        prunus.trace(model, torch.zeros(1, 64))


def test_a_lazy_parameter_is_named():
    with pytest.raises(TraceError, match=r"0\.weight has no shape yet"):
        plain_model(nn.Sequential(nn.LazyLinear(3)))
