"""Freshly initialised models from a SPEC, and weights from a file.

    zoo:resnet56   torchvision:resnet50   timm:vit_tiny_patch16_224   hf:CONFIG_DIR   package.module:callable

Nothing is downloaded, and nothing in a file is executed.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus import zoo
from prunus.errors import FileError, UserError, one_line
from prunus.files import expand_home, read_json, read_tensors, same_kind
from prunus.specs import user_object
from prunus.zoo.networks import TO_IMAGES
from prunus.zoo.optional import library
from prunus.zoo.pretrained import from_folder

SHOWN = 3  # differences that an error names


def load_model(
    spec: str,
    *,
    in_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    vocabulary: int | None = None,
    length: int | None = None,
    **more: Any,
) -> nn.Module:
    """Build the model that a SPEC names, initialised by torch's global seed.

    A model of text from hf:DIR has the folder's weights, if there are some.

    Args:
        spec: zoo:NAME, torchvision:NAME, timm:NAME, hf:CONFIG_DIR or package.module:callable.
        in_shape: The shape of an input, (channels, height, width) of images; None: the model reads text. A user's
            callable gets it, and what follows, if it has a parameter of that name.
        classes: The number of classes, or of other outputs; None: the answers are images, or the next tokens.
        vocabulary: The number of tokens that texts are made of.
        length: The number of tokens that a text has at most.
        more: What else the task knows, such as `scale`.

    Returns:
        The model.

    Raises:
        UserError: The spec or name is unknown (the nearest are suggested), a library is missing, a classifier is
            named without classes, or a user's callable does not return a module.
    """
    sources: dict[str, Callable[..., nn.Module]]
    sources = {"zoo": zoo.build, "torchvision": from_torchvision, "timm": from_timm, "hf": from_config}
    source, _, name = spec.partition(":")
    if source in sources and name and in_shape is None:
        assert vocabulary is not None and length is not None  # of text, see Args
        return reader_of_text(source, name, vocabulary, length, classes)
    if source in sources and name:
        assert in_shape is not None
        if source != "zoo" and len(in_shape) != 3:
            raise UserError(
                f"{spec} reads images (channels, height, width), but an input has the shape {tuple(in_shape)}; zoo:mlp "
                "reads rows of a table, and package.module:callable what you like."
            )
        if classes is not None:
            return sources[source](name, classes, in_shape)
        if source == "zoo" and name in TO_IMAGES:
            return zoo.build(name, in_shape=in_shape)
        near = difflib.get_close_matches(name, TO_IMAGES, n=1) if source == "zoo" else []
        raise UserError(
            f"{spec} is no network from images to images, and the task has no classes."
            f"{f' Did you mean zoo:{near[0]}?' if near else ''} Known: "
            f"{', '.join(f'zoo:{each}' for each in TO_IMAGES)}, package.module:callable."
        )
    make = user_object(spec, "model source", [*sources, "package.module"])
    of_text = {} if vocabulary is None else {"vocabulary": vocabulary, "length": length}
    asked = {"classes": classes, "in_shape": in_shape, **of_text, **more}
    named = inspect.signature(make).parameters
    model = make(**{key: value for key, value in asked.items() if key in named})
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec} should return an nn.Module, but returned a {type(model).__name__}.")
    return model


def reader_of_text(source: str, name: str, vocabulary: int, length: int, classes: int | None) -> nn.Module:
    """Build a model that reads text; UserError if the source has none."""
    if source == "hf":
        return from_folder(name, classes)
    if source == "zoo":
        return zoo.build_of_text(name, vocabulary=vocabulary, length=length, classes=classes)
    raise UserError(
        f"{source}:{name} reads images, but the data are text; give zoo:NAME, hf:DIR or package.module:callable."
    )


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Load weights from a file into a model, in place; nothing in the file is executed.

    Args:
        model: The model; untouched if an error is raised.
        file: A .safetensors file, or a .pt file of tensors only.

    Raises:
        FileError: The file is missing or damaged, or its names or shapes differ from the model's.
    """
    file = Path(file)
    tensors = read_tensors(file) if file.suffix == ".safetensors" else read_pt(file)
    own = model.state_dict()
    # Files from before torch 0.4.1, and from other libraries, lack BatchNorm's step counter.
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    extra = [name for name in tensors if name not in own]
    other = [
        f"{name} is {tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    kind = [
        f"{name} is {tensors[name].dtype} in the file, {own[name].dtype} in the model"
        for name in own
        if name in tensors and not same_kind(tensors[name], own[name])
    ]
    found = {"missing in the file": missing, "unknown to the model": extra, "of another shape": other}
    found |= {"of another type": kind}
    differences = [f"{what}: {list_first(names)}" for what, names in found.items() if names]
    if differences:
        raise FileError(
            f"the weights in {file} do not fit the model. {'; '.join(differences)}. "
            "Build the model that they were saved from."
        )
    model.load_state_dict(tensors, strict=True)


def list_first(names: list[str]) -> str:
    """List the first few names, and say how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def read_pt(file: Path) -> dict[str, Tensor]:
    """Read the state dict of a .pt file; it may be stored under "state_dict" or "model", with DataParallel's names."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileError(f"{file} does not exist.") from error
    except Exception as error:  # torch's reader raises of every kind on damaged files; it executes nothing
        cause = one_line(error)
        message = f"{file} is not a file of tensors only ({cause}); save model.state_dict()."
        raise FileError(message) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise FileError(f"{file} should hold a dict from names to tensors; save model.state_dict().")
    if not all(isinstance(name, str) for name in found):
        raise FileError(
            f"{file} should hold tensors by name, but a name is no text; save model.state_dict()."
        )
    parallel = all(name.startswith("module.") for name in found)
    return {name.removeprefix("module."): value for name, value in found.items()} if parallel else found


def from_torchvision(name: str, classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Build a torchvision classifier, or network for segmentation; these take images of three channels."""
    models = library("torchvision.models")
    check_listed("torchvision", name, models.list_models())
    # without it a network for segmentation downloads a backbone
    backbone = "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters
    if in_shape[0] != 3:
        seen = f"these have {in_shape[0]}; try timm:{name}"
        raise UserError(f"torchvision:{name} takes images of 3 channels, {seen}.")
    more = {"weights_backbone": None} if backbone else {}
    return models.get_model(name, weights=None, num_classes=classes, **more)


def from_timm(name: str, classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Build a timm classifier; architectures of a fixed image size are built for this size."""
    timm = library("timm")
    architecture, _, tag = name.partition(".")
    check_listed("timm", architecture, timm.list_models())
    if tag:  # names weights and so how images are read, as in resnet50.a1_in1k
        check_listed("timm", name, timm.list_pretrained(f"{architecture}.*"))
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    size = {"img_size": in_shape[1:]} if fixed else {}
    return timm.create_model(name, num_classes=classes, in_chans=in_shape[0], **size)


def from_config(folder: str, classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Build the image classifier that a transformers config.json describes."""
    config = read_json(expand_home(folder) / "config.json")
    transformers = library("transformers")
    try:
        kind = config.pop("model_type")
        sizes = {"image_size": in_shape[1]} if "image_size" in config else {}
        config |= {"num_labels": classes, "num_channels": in_shape[0]} | sizes
        made = transformers.AutoConfig.for_model(kind, **config)
        return transformers.AutoModelForImageClassification.from_config(made)
    except Exception as error:  # whatever a library raises about a config that does not fit its class
        raise UserError(
            f"{folder}/config.json describes no image classifier that transformers can build ({one_line(error)})."
        ) from error


def stated_images(folder: str) -> tuple[tuple[int, int, int] | None, int | None]:
    """Look up what images a transformers config.json is for.

    Args:
        folder: The folder with config.json.

    Returns:
        Channels, height and width, and the number of classes; each None where the config does not state it.
    """
    config = read_json(expand_home(folder) / "config.json")
    size, channels, labels = (config.get(name) for name in ("image_size", "num_channels", "id2label"))
    sides = size if isinstance(size, list) else [size, size]
    numbers = [each for each in sides if type(each) is int and each > 0]
    whole = (numbers[0], numbers[1]) if len(numbers) == len(sides) == 2 else None
    depth = channels if type(channels) is int and channels > 0 else 3
    number = len(labels) if isinstance(labels, dict) and labels else None
    return None if whole is None else (depth, *whole), number


def check_listed(source: str, name: str, listed: Iterable[str]) -> None:
    """Raise UserError with the nearest names unless `name` is listed; all names would fill pages."""
    listed = list(listed)
    if name not in listed:
        near = difflib.get_close_matches(name, listed, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{source} has no model {name!r}.{hint}")
