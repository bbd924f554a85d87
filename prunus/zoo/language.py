"""Small transformers for text, which need no other library: a decoder, and an encoder that classifies.

    decoder_tiny    4 causal blocks of 128, 4 heads of 32, an MLP of 512     scores the next token at every place
    encoder_tiny    2 blocks of 64, 4 heads of 16, an MLP of 256             scores the classes of a text

Both embed tokens and places, both learned. With 258 tokens (bytes and two more) and 256 places, the decoder has
892,418 parameters, the encoder with 4 classes 133,252 parameters. Source: ours; the decoder has the form of GPT-2
(Radford et al., 2019), the encoder averages its tokens.

Shapes: input_ids int64 (B, T), B texts of T tokens, T at most `length`; attention_mask (B, T), 1 for tokens, 0 for
padding.
"""

import torch
from torch import Tensor, nn

from prunus.zoo.transformer import Block, init


class Embedding(nn.Module):
    """The sum of what is learned of each token and of each place: (B, T) to (B, T, width)."""

    def __init__(self, vocabulary: int, length: int, width: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.tokens(input_ids) + self.places(places)


class Decoder(nn.Module):
    """Causal blocks, and a linear layer that scores the next token: (B, T) to (B, T, vocabulary)."""

    def __init__(self, vocabulary: int, length: int, *, depth: int, width: int, heads: int, hidden: int):
        super().__init__()
        self.embedding = Embedding(vocabulary, length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, causal=True) for _ in range(depth)))
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        self.apply(init)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.linear(self.norm(self.blocks(self.embedding(input_ids))))


class Encoder(nn.Module):
    """Blocks, the mean of the tokens that are no padding, and a linear layer: (B, T) to (B, classes)."""

    def __init__(
        self, vocabulary: int, length: int, classes: int, *, depth: int, width: int, heads: int, hidden: int
    ):
        super().__init__()
        self.embedding = Embedding(vocabulary, length, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, classes)
        self.apply(init)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        seen = attention_mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, seen)
        counted = attention_mask[:, :, None].to(x.dtype)
        return self.linear((self.norm(x) * counted).sum(1) / counted.sum(1))


def decoder_tiny(vocabulary: int, length: int) -> Decoder:
    """Build a decoder of 4 blocks and a stream of 128."""
    return Decoder(vocabulary, length, depth=4, width=128, heads=4, hidden=512)


def encoder_tiny(vocabulary: int, length: int, classes: int) -> Encoder:
    """Build an encoder of 2 blocks and a stream of 64."""
    return Encoder(vocabulary, length, classes, depth=2, width=64, heads=4, hidden=256)
