"""Tiny models of transformers, one of each family, each with an example of its inputs."""

import torch

from tests.lib.models import imported_beside_torchvision

VOCABULARY = 96
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = DECODER | {"num_key_value_heads": 2}
HEAD = {"head_dim": 8}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}

# family -> (what makes the model, name of its config, fields)
CAUSAL, MASKED = "AutoModelForCausalLM", "AutoModelForMaskedLM"
FAMILIES = {
    "llama": (CAUSAL, "LlamaConfig", GROUPED),
    "mistral": (CAUSAL, "MistralConfig", GROUPED),
    "qwen2": (CAUSAL, "Qwen2Config", GROUPED),
    "gemma": (CAUSAL, "GemmaConfig", GROUPED | HEAD),
    "qwen3": (CAUSAL, "Qwen3Config", GROUPED | HEAD),
    "gemma2": (CAUSAL, "Gemma2Config", GROUPED | HEAD | {"query_pre_attn_scalar": 8}),
    "gemma3": (CAUSAL, "Gemma3TextConfig", GROUPED | HEAD | {"query_pre_attn_scalar": 8}),
    "phi3": (CAUSAL, "Phi3Config", GROUPED | {"pad_token_id": 0}),
    "gpt2": (
        CAUSAL,
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4},
    ),
    "gpt_neox": (CAUSAL, "GPTNeoXConfig", DECODER),
    "opt": (
        CAUSAL,
        "OPTConfig",
        {k: v for k, v in DECODER.items() if k != "intermediate_size"}
        | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    "bert": (MASKED, "BertConfig", DECODER),
    "roberta": (MASKED, "RobertaConfig", DECODER),
    "distilbert": (
        MASKED,
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "hidden_dim": 64,
            "n_layers": 3,
            "n_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": DECODER | {"eos_token_id": 2}, "vision_config": VISION, "projection_dim": 16},
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {k: v for k, v in DECODER.items() if k != "max_position_embeddings"}
        | {
            "num_hidden_layers": 2,
            "conv_dim": (16, 16),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
    ),
}
# The outputs that count: others are states of the network's middle, whose width could not shrink with the rest.
OUTPUTS = {"t5": "logits", "whisper": "logits", "clip": ["logits_per_image", "logits_per_text"]}


def family(name, **fields):
    """A model in evaluation mode with random weights, and its inputs; `fields` replace those of its config."""
    transformers = imported_beside_torchvision("transformers")
    maker, config, usual = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**usual | fields)
    kind = getattr(transformers, maker)
    model = kind.from_config(config) if maker in (CAUSAL, MASKED) else kind(config)
    return model.eval(), inputs_of(name)


def inputs_of(name):
    """Inputs of one example."""
    generator = torch.Generator().manual_seed(1)

    def tokens(length):
        return torch.randint(5, VOCABULARY, (1, length), generator=generator)

    def numbers(*shape):
        return torch.randn(1, *shape, generator=generator)

    if name == "t5":
        return {"input_ids": tokens(9), "decoder_input_ids": tokens(5)}
    if name == "whisper":
        return {"input_features": numbers(16, 40), "decoder_input_ids": tokens(5)}
    if name == "vit":
        return {"pixel_values": numbers(3, 16, 16)}
    if name == "clip":
        return {"input_ids": tokens(9), "pixel_values": numbers(3, 16, 16)}
    return {"input_values": numbers(400)} if name == "wav2vec2" else {"input_ids": tokens(9)}
