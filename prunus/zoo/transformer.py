"""The parts of transformers: self-attention with several heads, and blocks on a residual stream.

Shapes: B examples, T tokens; every part maps (B, T, width) to (B, T, width).
Source: Vaswani et al., NeurIPS 2017, arXiv:1706.03762, with norms before the layers as in Dosovitskiy et al., ICLR
2021, arXiv:2010.11929, section 3.1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention with `heads` heads.

    Args:
        width: The width of the stream.
        heads: The number of heads.
        causal: Whether a token sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.head_width, self.causal = heads, width // heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens; mask: bool, broadcast to (B, heads, T, T), True where a token may be seen."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head_width)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal).transpose(1, 2)
        return self.proj(y.reshape(batch, tokens, self.heads * self.head_width))


class Block(nn.Module):
    """Attention, then an MLP of one hidden layer, each preceded by a norm, on a residual stream."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool = False):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, causal)
        self.norm2, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@torch.no_grad()
def init(module: nn.Module) -> None:
    """Initialise linear layers by small normal weights and biases of zero, embeddings by small normal numbers."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
