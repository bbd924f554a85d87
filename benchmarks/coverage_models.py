"""The listed models: 142 of torchvision, timm and transformers, built with random weights, in evaluation mode.

`LISTS[list]` names the models of a list in order, `build(list, name)` makes one. Those of transformers are toys: the
architectures as they come, with few and narrow layers. Nothing here knows what the models are for.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

SHIM = Path(__file__).parents[2] / "shared" / "tools"
if SHIM.exists():
    sys.path.insert(0, str(SHIM))
    import torchvision_cpu  # noqa: F401  (lets torchvision and timm import beside a CPU build of torch)

TORCHVISION = """alexnet vgg11 vgg16 vgg16_bn resnet18 resnet34 resnet50 resnet101 wide_resnet50_2 resnext50_32x4d
resnext101_32x8d densenet121 densenet161 densenet169 googlenet inception_v3 squeezenet1_0 squeezenet1_1 mnasnet0_5
mnasnet1_0 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large shufflenet_v2_x0_5 shufflenet_v2_x1_0
shufflenet_v2_x2_0 efficientnet_b0 efficientnet_b1 efficientnet_b4 efficientnet_v2_s efficientnet_v2_m
regnet_x_400mf regnet_x_3_2gf regnet_y_400mf regnet_y_1_6gf regnet_y_8gf convnext_tiny convnext_small swin_t swin_s
swin_v2_t maxvit_t vit_b_16 vit_b_32"""
SEGMENTATION = "fcn_resnet50 deeplabv3_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large"
DETECTION = {  # name: the modules whose width a user sees, as torch-pruning's own script for torchvision has them
    "ssd300_vgg16": "head",
    "ssdlite320_mobilenet_v3_large": "head",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "rpn.head.cls_logits rpn.head.bbox_pred backbone.fpn roi_heads",
    "fasterrcnn_resnet50_fpn": "rpn.head.cls_logits rpn.head.bbox_pred backbone.fpn roi_heads",
    "fasterrcnn_resnet50_fpn_v2": "rpn.head.cls_logits rpn.head.bbox_pred backbone.fpn roi_heads",
    "fcos_resnet50_fpn": "head.classification_head.cls_logits head.regression_head.bbox_reg "
    "head.regression_head.bbox_ctrness",
    "retinanet_resnet50_fpn_v2": "head.classification_head.cls_logits head.regression_head.bbox_reg",
    "maskrcnn_resnet50_fpn_v2": "rpn.head.cls_logits rpn.head.bbox_pred roi_heads.box_predictor "
    "roi_heads.mask_predictor",
    "keypointrcnn_resnet50_fpn": "rpn.head.cls_logits backbone.fpn.layer_blocks rpn.head.bbox_pred "
    "roi_heads.box_head roi_heads.box_predictor roi_heads.keypoint_predictor",
}
TIMM = """resnet50 resnext50_32x4d densenet121 efficientnet_b0 mobilenetv2_100 mobilenetv3_large_100
mobilenetv4_conv_small convnext_tiny convnextv2_tiny vit_small_patch16_224 deit_small_patch16_224
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 beit_base_patch16_224 eva02_tiny_patch14_224 mixer_s32_224
gmlp_s16_224 maxvit_tiny_rw_224 coatnet_0_rw_224 coat_lite_tiny cait_xxs24_224 xcit_nano_12_p16_224 pit_s_224
levit_128 mobilevit_s mobilevitv2_050 efficientformer_l1 efficientformerv2_s0 edgenext_small regnety_008 dpn68
hrnet_w18_small inception_v4 legacy_xception vgg16_bn nfnet_l0 repvgg_a0 ghostnet_100 res2net50_26w_4s skresnet18
resnest14d cspdarknet53 dla34 selecsls42b tresnet_m rexnet_100 mnasnet_100 fbnetc_100 lcnet_050 tinynet_a volo_d1_224
twins_svt_small pvt_v2_b0 poolformer_s12 caformer_s18 focalnet_tiny_srf davit_tiny nest_tiny hiera_tiny_224 fastvit_t8
repvit_m1 starnet_s1 mambaout_femto hgnet_tiny hgnetv2_b0"""
SAMPLE = {
    "torchvision": "resnet18 mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_1",
    "tv_seg": "lraspp_mobilenet_v3_large",
    "timm": "lcnet_050 ghostnet_100 xcit_nano_12_p16_224",
    "hf": "bert gpt2 llama_rep2 t5",
}


LIBRARIES = {
    "torchvision": "torchvision",
    "tv_seg": "torchvision",
    "tv_det": "torchvision",
    "timm": "timm",
} | {"hf": "transformers.models.bert.modeling_bert"}


def missing(kind: str) -> str:
    """Why the library of a list cannot be imported here; empty if it can."""
    try:
        importlib.import_module(LIBRARIES[kind])
    except Exception as error:  # one made for a GPU build of torch raises RuntimeError beside a CPU build
        return str(error).splitlines()[0]
    return ""


@dataclass
class Case:
    """A model and an example for it: a tuple of arguments, or a dict of keyword arguments."""

    model: nn.Module
    example: Any
    heads: list[nn.Module]  # the modules whose width a user sees; other tools must be told
    training: Any = None  # an example for training, if it takes other arguments there


def ending_in(model: nn.Module, width: int) -> list[nn.Module]:
    """The layers with so many outputs, which are the classifiers."""
    widths = ((m, getattr(m, "out_features", getattr(m, "out_channels", None))) for m in model.modules())
    return [m for m, found in widths if found == width and isinstance(m, (nn.Linear, nn.Conv2d))]


def torchvision(name: str) -> Case:
    from torchvision.models import get_model

    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = get_model(name, weights=None, **options)
    size = 299 if name == "inception_v3" else 224
    return Case(model, (torch.randn(1, 3, size, size),), ending_in(model, 1000))


def segmentation(name: str) -> Case:
    from torchvision.models import get_model

    options = {} if name.startswith("lraspp") else {"aux_loss": None}
    model = get_model(name, weights=None, weights_backbone=None, **options)
    return Case(model, (torch.randn(1, 3, 224, 224),), ending_in(model, 21))


def detection(name: str) -> Case:
    """Small images and few proposals, because nms and roi_align in plain torch are slow."""
    from torchvision.models import get_model

    options: dict[str, int] = {}
    if "ssd" not in name:
        options |= {"min_size": 300, "max_size": 300}
        options["trainable_backbone_layers"] = 6 if "mobilenet" in name else 5
    if "rcnn" in name:
        options |= {
            "rpn_pre_nms_top_n_test": 100,
            "rpn_post_nms_top_n_test": 50,
            "rpn_pre_nms_top_n_train": 100,
            "rpn_post_nms_top_n_train": 50,
            "box_batch_size_per_image": 32,
            "box_detections_per_img": 10,
        }
    else:
        options |= {"topk_candidates": 20, "detections_per_img": 10}
    model = get_model(name, weights=None, weights_backbone=None, **options)
    size = 320 if "320" in name else 300
    heads = [model.get_submodule(path) for path in DETECTION[name].split()]
    images = [torch.rand(3, size, size) for _ in range(2)]  # two, for norms over a batch
    # torchvision's roi_align in plain torch, which runs here, takes over 20 GiB for the masks of a training step
    training = None if "mask" in name else (images, [target(name, size) for _ in images])
    return Case(model, (images[:1],), heads, training)


def target(name: str, size: int) -> dict[str, torch.Tensor]:
    """Two objects in an image of this size, with what a detector learns about each."""
    boxes = size * torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.3, 0.1, 0.9, 0.5]])
    found = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.long)}
    if "keypoint" in name:
        found["keypoints"] = torch.tensor([0.4 * size, 0.3 * size, 1.0]).repeat(len(boxes), 17, 1)
    return found


def timm(name: str) -> Case:
    import timm

    model = timm.create_model(name, pretrained=False)
    found = model.get_classifier()
    heads = [each for each in (found if isinstance(found, (tuple, list)) else [found]) if weighted(each)]
    return Case(
        model,
        (torch.randn(1, *model.default_cfg["input_size"]),),
        heads or ending_in(model, model.num_classes),
    )


def weighted(module: Any) -> bool:
    return isinstance(module, nn.Module) and any(True for _ in module.parameters())


# ------------------------------------------------------------------------------------------ transformers
VOCABULARY = 1000
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "num_labels": 10,
}
DECODER = {key: value for key, value in ENCODER.items() if key != "num_labels"}
DECODER |= {"use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TWO_LAYERS = {
    f"{side}_{what}": number
    for side in ("encoder", "decoder")
    for what, number in {"layers": 2, "attention_heads": 8, "ffn_dim": 256}.items()
}
CLIP_SIDE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "projection_dim": 64,
}
CLIP_TEXT = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 256],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}


def words() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(5, 900, (1, 16))}


def padded_words() -> dict[str, torch.Tensor]:
    return words() | {"attention_mask": torch.ones(1, 16, dtype=torch.long)}


def image() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(1, 3, 224, 224)}


def translated() -> dict[str, torch.Tensor]:
    return words() | {"decoder_input_ids": torch.randint(5, 900, (1, 8))}


def spoken() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(1, 40, 100), "decoder_input_ids": torch.randint(5, 900, (1, 8))}


def described() -> dict[str, torch.Tensor]:
    return words() | image()


def transformer(
    kind: str, config: dict[str, Any], inputs: Callable[[], dict[str, torch.Tensor]], heads: str = ""
) -> Case:
    """A model by the name of its class, as AutoModel would make it. heads: none means the output embeddings."""
    import transformers

    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**config))
    found = [model.get_submodule(path) for path in heads.split()] or [model.get_output_embeddings()]
    return Case(model, inputs(), found)


def language(kind: str, **changes: Any) -> tuple[Any, ...]:
    """A decoder of words; a change to None leaves an option out."""
    return f"{kind}ForCausalLM", {k: v for k, v in (DECODER | changes).items() if v is not None}, words


HF: dict[str, tuple[Any, ...]] = {
    "bert": ("BertForSequenceClassification", ENCODER, padded_words, "classifier"),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "dim": 128,
            "n_layers": 3,
            "n_heads": 8,
            "hidden_dim": 256,
            "max_position_embeddings": 64,
            "num_labels": 10,
        },
        padded_words,
        "classifier",
    ),
    "roberta": ("RobertaForSequenceClassification", ENCODER, padded_words, "classifier.out_proj"),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 128,
            "n_layer": 3,
            "n_head": 8,
            "n_positions": 64,
            "use_cache": False,
        },
        words,
    ),
    "llama": language("Llama", num_key_value_heads=2),
    "llama_mha": language("Llama", num_key_value_heads=8),
    "llama_rep2": language("Llama", num_key_value_heads=4),
    "qwen2": language("Qwen2", num_key_value_heads=2),
    "mistral": language("Mistral", num_key_value_heads=2),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 128,
            "d_kv": 16,
            "d_ff": 256,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 8,
            "use_cache": False,
        },
        translated,
    ),
    "vit": (
        "ViTForImageClassification",
        {
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "intermediate_size": 256,
            "num_labels": 10,
        },
        image,
        "classifier",
    ),
    "swin": (
        "SwinForImageClassification",
        {"embed_dim": 48, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "num_labels": 10},
        image,
        "classifier",
    ),
    "segformer": ("SegformerForSemanticSegmentation", {"num_labels": 10}, image, "decode_head.classifier"),
    "detr": (
        "DetrForObjectDetection",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": RESNET,
            "d_model": 128,
            "num_queries": 20,
            "num_labels": 10,
        }
        | TWO_LAYERS,
        image,
        "class_labels_classifier bbox_predictor",
    ),
    "clip": (
        "CLIPModel",
        {
            "text_config": CLIP_SIDE | CLIP_TEXT,
            "vision_config": CLIP_SIDE | {"image_size": 224, "patch_size": 32},
            "projection_dim": 64,
        },
        described,
        "text_projection visual_projection",
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 128,
            "num_mel_bins": 40,
            "max_source_positions": 50,
            "max_target_positions": 32,
            "use_cache": False,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        }
        | TWO_LAYERS,
        spoken,
    ),
    "opt": language("OPT", ffn_dim=256, intermediate_size=None, word_embed_proj_dim=128),
    "gpt_neox": language("GPTNeoX"),
    "phi": language("Phi"),
    "gemma": language("Gemma", num_key_value_heads=1, head_dim=16),
}

LISTS = {
    "torchvision": TORCHVISION.split(),
    "tv_seg": SEGMENTATION.split(),
    "tv_det": list(DETECTION),
    "timm": TIMM.split(),
    "hf": list(HF),
}
BUILDERS: dict[str, Callable[[str], Case]] = {
    "torchvision": torchvision,
    "tv_seg": segmentation,
    "tv_det": detection,
    "timm": timm,
    "hf": lambda name: transformer(*HF[name]),
}


def build(kind: str, name: str) -> Case:
    """Build a listed model, with weights that are all different, so that no norm or scale is plain one or zero."""
    torch.manual_seed(0)
    case = BUILDERS[kind](name)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for path, buffer in case.model.named_buffers():
            if path.endswith("running_mean"):
                buffer.add_(0.02 * torch.randn_like(buffer))
            elif path.endswith("running_var"):
                buffer.mul_((0.1 * torch.randn_like(buffer)).exp())
    case.model.eval()
    return case
