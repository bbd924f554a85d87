"""Halve the multiply-adds of a Hugging Face transformer by its attention heads and hidden layers.

The model is a small BERT with random weights, made from its configuration, so nothing is downloaded; needs the package
`transformers` (`pip install 'prunus[models]'`). Run it with `python examples/transformer.py`.
"""

import torch
from transformers import BertConfig, BertModel

import prunus


def main() -> None:
    """Trace, choose, shrink, compare."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=8, intermediate_size=256
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    example = {
        "input_ids": torch.randint(100, (2, 16)),
        "attention_mask": torch.ones(2, 16, dtype=torch.long),
    }

    # Heads, features within heads and hidden units are found by tracing; nothing about BERT is written down here.
    graph = prunus.trace(model, example)
    # `...query#0` are the heads of a layer, `...query#1` the features of each head; those stay as they are.
    scores = prunus.scores.magnitude(model, graph)
    keep = prunus.select(graph, scores, prunus.Budget(macs=0.5), how="uniform", freeze=["*#1"])
    # Proved: the small model equals the original with the removed heads and hidden units at zero.
    small = prunus.shrink(model, graph, keep)
    proof = prunus.verify(model, graph, keep, small)

    # The same once more by hand, on an input of another length.
    other = {"input_ids": torch.randint(100, (3, 9))}
    with torch.no_grad():
        expected = prunus.mask(model, graph, keep)(**other).last_hidden_state
        got = small(**other).last_hidden_state
    assert torch.allclose(got, expected, atol=1e-5)

    print(graph.explain("encoder.layer.0.intermediate.dense"))
    layer = small.encoder.layer[0]
    print(f"multiply-adds left: {prunus.macs(graph, keep) / prunus.macs(graph):.0%}")
    print(f"heads of the first layer: 8 -> {len(keep['encoder.layer.0.attention.self.query#0'])}")
    print(f"its queries, 8 features a head: 64 -> {layer.attention.self.query.out_features}")
    print(f"its hidden units: 256 -> {layer.intermediate.dense.out_features}")
    print(f"proof: largest difference {proof.max_abs_error:.1e}, allowed {proof.tolerance:.0e}")


if __name__ == "__main__":
    main()
