"""The commands that show what there is and run nothing: prunus inspect | methods | tasks."""

from typing import Annotated

from rich.text import Text
from tyro.conf import Positional, arg

from prunus.cli import describe
from prunus.cli.parameters import Initial, Patterns
from prunus.cli.terminal import OUT
from prunus.errors import UserError
from prunus.export import trace_own_example
from prunus.graph import trace
from prunus.methods import find
from prunus.progress import bar
from prunus.selection import min_units
from prunus.tasks import find_kind
from prunus.zoo import load_model, load_weights


def inspect(
    model: str,
    data: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    explain: str | None = None,
    weights: Initial = None,
    freeze: Patterns = (),
    only: Patterns = (),
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Show what of a model can shrink: its axes and their kinds, what is coupled, what is fixed and why, the blocks
    that can be skipped, and the costs; of images, also what each axis leaves unexplained with fewer units. Nothing is
    trained or changed, and of a language model in hf:DIR only the configuration is read, however large it is.

    Examples:
      prunus inspect --model zoo:resnet56
      prunus inspect --model zoo:resnet20 --data parquet:cifar10 --weights cifar10_resnet20.safetensors
      prunus inspect --model timm:vit_tiny_patch16_224 --explain blocks.0.attn.qkv
      prunus inspect --model my.net:Net --input-shape 3 64 64 --classes 5
      prunus inspect --model zoo:vit_tiny --only heads mlp --freeze 'blocks.0'
      prunus inspect --model hf:checkpoints/llama --only groups mlp

    Args:
        model: zoo:NAME, torchvision:NAME, timm:NAME, hf:CONFIG_DIR or package.module:callable.
        data: The data from which to take the image shape and the number of classes, and 512 training images for the
            sensitivity of each axis; labels are not read.
        input_shape: The channels, height and width of one image.
        classes: The number of classes.
        explain: An axis, layer or parameter to explain in full.
        weights: A .safetensors file, or a .pt file of tensors; the sensitivity is that of these weights. Without
            --data it is only checked that they fit.
        freeze: Show what these patterns keep whole, as `prunus run` reads them: kinds of axes, or patterns of layers.
        only: Show what stays whole if only these may shrink.
        json_output: Print the same as JSON.
    """
    if explain and (json_output or freeze or only):
        other = "--json (everything)" if json_output else "--freeze and --only (what stays whole)"
        raise UserError(f"give {other} or --explain (one axis, layer or parameter), not both.")
    network, loaded = describe.language_model(model), None
    if network is not None:
        of_images = {"data": data, "input-shape": input_shape, "classes": classes, "weights": weights}
        for name, value in of_images.items():
            if value is not None:
                raise UserError(f"--{name} is for models of images, but {model} reads texts; leave it out.")
        graph = trace_own_example(network)
    else:
        loaded = describe.load_images(model, data)
        shape, number = describe.input_of(model, loaded, input_shape, classes)
        network = load_model(model, classes=number, in_shape=shape)
        if weights is not None:
            load_weights(network, weights)
        graph = trace(network, describe.example(shape))
    least = min_units(graph, freeze=freeze, only=only)
    if explain:
        OUT.print(Text(graph.explain(explain)))
        return
    curves = None if loaded is None else describe.measure_curves(network, graph, loaded, bar)
    if json_output:
        OUT.print(describe.graph_json(graph, least, curves), markup=False, soft_wrap=True)
        return
    OUT.print(describe.graph(graph, least))
    if curves is not None:
        OUT.print(describe.curves(curves))


def methods(name: Positional[str | None] = None) -> None:
    """List the methods; with a name, show that method's paper and options.

    Examples:
      prunus methods
      prunus methods taylor

    Args:
        name: The method to show in full.
    """
    OUT.print(describe.method(find(name)) if name else describe.methods())


def tasks(name: Positional[str | None] = None) -> None:
    """List the built-in tasks; with a name, show that task's options.

    Examples:
      prunus tasks
      prunus tasks classification

    Args:
        name: The task to show in full.
    """
    OUT.print(describe.task(find_kind(name)) if name else describe.tasks())
