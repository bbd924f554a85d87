"""Prune a Hugging Face model while transformers' Trainer trains it.

A small vision transformer learns scikit-learn's digits; at three steps of its training some of its units go, until half
of the multiply-adds are left. Nothing is downloaded; needs the package `transformers` (`pip install 'prunus[models]'`).
Run it with `python examples/trainer.py`.
"""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

import prunus

CUTS = {150: 0.8, 225: 0.65, 300: 0.5}  # after so many steps: the share of multiply-adds that may be left
STEPS = 450


def accuracy(prediction) -> dict[str, float]:
    """The share of images whose class is predicted correctly."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Train, and prune meanwhile."""
    set_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)
    data = [
        {"pixel_values": image, "labels": int(label)}
        for image, label in zip(images, digits.target, strict=True)
    ]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes)
    model = ViTForImageClassification(config)

    # 1. Plan: an example of the model's input, and a budget for each cut. Scores are those of magnitude by default.
    limits = {step: prunus.Budget(macs=share) for step, share in CUTS.items()}
    gradual = prunus.Gradual({"pixel_values": images[:1]}, limits)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            learning_rate=3e-3,
            per_device_train_batch_size=64,
            save_steps=STEPS,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=STEPS,
        )
        # 2. Train as ever. The model shrinks in place, so optimiser and learning rate go on as they were.
        trainer = Trainer(
            model,
            arguments,
            train_dataset=Subset(data, range(1437)),
            eval_dataset=Subset(data, range(1437, 1797)),
            compute_metrics=accuracy,
            callbacks=[prunus.trainer_callback(gradual)],
        )
        trainer.train()
        reached = trainer.evaluate()["eval_accuracy"]
        # 3. Every checkpoint of the Trainer holds the pruned model in a form that Prunus opens.
        saved = Path(folder) / f"checkpoint-{STEPS}" / "pruned"
        again = prunus.load(saved, ViTForImageClassification(config)).eval()

    with torch.no_grad():
        assert torch.equal(again(images[:8]).logits, model.eval()(images[:8]).logits)
    for cut in gradual.cuts:
        print(f"after step {cut.step}: {cut.units} units removed, multiply-adds left {cut.macs_share:.0%}")
    print(f"parameters: {model.num_parameters()}, accuracy: {reached:.1%}")


if __name__ == "__main__":
    main()
