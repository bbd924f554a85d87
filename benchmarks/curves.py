"""How long curves take, and how much memory.

    python benchmarks/curves.py --model zoo:resnet20 --side 32 --images 1024
    python benchmarks/curves.py --model torchvision:resnet50 --side 64 --images 32

Random weights and inputs, one thread. Seconds are the processor's; elimination depends on the network's sizes alone.
"""

import argparse
import resource
import time

import torch

import prunus
from prunus.refit import Moments
from prunus.zoo import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoo:resnet20")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=1024)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = load_model(asked.model, classes=10, in_shape=(3, asked.side, asked.side)).eval()
    x = torch.randn(asked.images, 3, asked.side, asked.side)
    graph, began = prunus.trace(model, x[:1]), time.process_time()
    moments = Moments(model, graph, x.split(32))
    gathered, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    curves = moments.curves()
    done, after = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    units = sum(len(curve.order) for curve in curves.axes.values())
    print(f"{asked.model}: {len(curves.axes)} axes of {units} units")
    print(f"moments {gathered - began:.1f} s, curves {done - gathered:.1f} s")
    print(f"{before / 1024:.0f} MB at the most before the curves, {after / 1024:.0f} MB with them")


if __name__ == "__main__":
    main()
