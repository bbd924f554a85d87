"""Small models with blocks that can be skipped, and such a block."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunus.graph import Graph
from tests.lib.models import imported_beside_torchvision

IDS = torch.arange(3, 11)[None]


class Block(nn.Module):
    """Two layers beside a stream, to which their result is added."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.relu(self.up(x)))


class Stack(nn.Module):
    """Five blocks, one after the other, that classify the digits."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.links = nn.Sequential(*(Block(32, 48) for _ in range(5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.links(self.stem(x.flatten(1)))))


def names(graph: Graph) -> list[str]:
    """The modules that can be skipped, in the order in which they run."""
    return [block.module for block in graph.blocks.values()]


def llama(layers: int = 5, **more: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A decoder of transformers with grouped heads, and its example."""
    transformers = imported_beside_torchvision("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval(), {"input_ids": IDS}


def gpt2(layers: int = 5, **more: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """GPT-2's decoder, and its example."""
    transformers = imported_beside_torchvision("transformers")
    config = transformers.GPT2Config(
        n_embd=16,
        n_layer=layers,
        n_head=4,
        vocab_size=40,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval(), {"input_ids": IDS}
