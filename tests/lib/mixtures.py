"""Mixtures of experts of transformers, small and with random weights."""

import pytest
import torch

from tests.lib.models import imported_beside_torchvision

TOKENS = torch.arange(12).view(2, 6)
SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "pad_token_id": 0}
OF_FAMILY = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    "GptOss": {"num_local_experts": 4, "head_dim": 8},
    "DeepseekV3": {"n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
    | {"first_k_dense_replace": 0, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8}
    | {"qk_nope_head_dim": 8, "v_head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 4},
}


def mixture(name, **more):
    """A model of a family, in evaluation mode; `more`: sizes of its config."""
    transformers = pytest.importorskip("transformers", reason="the models are transformers'")
    imported_beside_torchvision("transformers.models.mixtral.modeling_mixtral")
    if not callable(getattr(transformers.PreTrainedModel, "set_experts_implementation", None)):
        pytest.skip("needs a transformers whose mixtures choose how they compute their experts")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | OF_FAMILY[name] | more)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()
