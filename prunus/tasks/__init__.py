"""What a model is for: a task joins a model and data with a loss and a metric.

Training and methods know a task by these names, whatever it is (see `classification`):
    model, data, example      data: train, val and test splits
    metric                    the key of `evaluate`'s result that counts; higher_is_better
    loss(output, y, smoothing) -> scalar tensor
    distill_loss(output, teacher_output, temperature) -> scalar tensor
    evaluate(model, split) -> {metric: float, "loss": float}
"""
