"""What drop-max pooling costs beside max-pooling and beside the plain form of it: time and memory.

``python benchmarks/drop_max.py [--threads 1 2] [--device cuda]`` prints a table per number of threads.

Times are the median of alternating runs, so that a busy machine slows all alike; ratios are the median of the pairwise
ratios to max-pooling. Memory is what stays for the backward; the output is not counted, because all three have it.

Measured with PyTorch 2.15 on two cores of an AMD EPYC that other work shared, kernel 3, stride 2, padding 1, float32:

======================  =======  ===========  ========  =====  =============  ===================
images                  threads  max-pooling  drop-max  ratio  unfold + topk  kept: max, drop-max
======================  =======  ===========  ========  =====  =============  ===================
8 x 64 x 112 x 112      1        118 ms       63 ms     0.53   565 ms         12.2 MB, 1.5 MB
8 x 64 x 112 x 112      2        86 ms        79 ms     0.96   776 ms         the same
the same, channels last 1        10 ms        39 ms     3.97                  the same
the same, channels last 2        24 ms        59 ms     2.33                  the same
1 x 64 x 48 x 48 x 48   1        92 ms        72 ms     0.79                  6.8 MB, 0.8 MB
1 x 64 x 48 x 48 x 48   2        71 ms        77 ms     1.06                  the same
======================  =======  ===========  ========  =====  =============  ===================
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from monai_adv.networks import DropMaxPool2d, DropMaxPool3d

Layer = Callable[[Tensor], Tensor]


def unfold_topk(x: Tensor) -> Tensor:
    """Kernel 3, stride 2, padding 1 on images; the form that most people would write."""
    batch, channels, height, width = x.shape
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    windows = F.unfold(padded.flatten(0, 1)[:, None], 3, stride=2)
    return windows.topk(2, 1).values[:, 1].view(batch, channels, (height + 1) // 2, (width + 1) // 2)


def kept(layer: Layer, x: Tensor) -> int:
    """Bytes that autograd keeps beside the images."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != x.untyped_storage().data_ptr():
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    return sum(sizes.values())


def compare(layers: dict[str, Layer], x: Tensor, rounds: int, threads: int) -> None:
    """Print a table; the first layer is what the others are compared with."""
    gradients = {name: torch.randn_like(layer(x)) for name, layer in layers.items()}
    x.requires_grad_()
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            names = {"layer": layer, "x": x, "g": gradients[name], "torch": torch}
            for kind, call in {"forward": "layer(x.detach())", "both": "torch.autograd.grad(layer(x), x, g)"}.items():
                times[name][kind].append(Timer(call, globals=names, num_threads=threads).timeit(3).median)
    first = next(iter(layers))
    print(f"{'':34}{'forward':>10}{'ratio':>7}{'forward + backward':>21}{'ratio':>7}{'kept':>10}")
    for name, layer in layers.items():
        line = f"{name:34}"
        for kind, width in {"forward": 10, "both": 21}.items():
            ours, theirs = times[name][kind], times[first][kind]
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            line += f"{statistics.median(ours) * 1e3:>{width - 3}.1f} ms{ratio:7.2f}"
        print(f"{line}{kept(layer, x) / 2**20:7.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    torch.manual_seed(0)
    image, volume = torch.randn(8, 64, 112, 112), torch.randn(1, 64, 48, 48, 48)
    for threads in args.threads:
        print(f"\n{args.device}, {threads} threads, 8 x 64 x 112 x 112, kernel 3, stride 2, padding 1")
        layers: dict[str, Layer] = {"max-pooling": nn.MaxPool2d(3, 2, 1), "drop-max": DropMaxPool2d(3, 2, 1)}
        compare({**layers, "unfold + topk": unfold_topk}, image.detach().clone().to(args.device), args.rounds, threads)
        print("the same, channels last")
        compare(layers, image.to(args.device, memory_format=torch.channels_last), args.rounds, threads)
        print("1 x 64 x 48 x 48 x 48, kernel 3, stride 2, padding 1")
        layers = {"max-pooling": nn.MaxPool3d(3, 2, 1), "drop-max": DropMaxPool3d(3, 2, 1)}
        compare(layers, volume.detach().clone().to(args.device), args.rounds, threads)


if __name__ == "__main__":
    main()
