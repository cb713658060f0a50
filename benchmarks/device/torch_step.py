"""DeepInversion's step in PyTorch, as one would write it; answers requests on its standard input.

It imports nothing of the package, and neither JAX nor NumPy, so any Python with PyTorch runs it. A
request and its answer are a line of JSON each:

  {"load": FILE}                              -> {"device": ..., "version": ...}
  {"losses": N}                               -> {"losses": [...]}  of the first N steps, eager, f32
  {"time": "eager" | "compiled", "steps": N}  -> {"seconds": ...}   the first of a kind compiles
"""

import json
import struct
import sys
import time

import torch
import torch.nn.functional as F

EPSILON = 1e-5


class BatchNorm(torch.nn.Module):
    """In evaluation mode; adds the distance of its input's moments to the stored ones to a list."""

    def __init__(self, tensors, prefix):
        super().__init__()
        for name in ("scale", "bias", "mean", "var"):
            self.register_buffer(name, tensors[f"{prefix}/{name}"])

    def forward(self, x, distances):
        """The normalised input."""
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        distances.append(torch.norm(mean - self.mean) + torch.norm(var - self.var))
        return F.batch_norm(x, self.mean, self.var, self.scale, self.bias, False, 0.0, EPSILON)


class Block(torch.nn.Module):
    """A residual block with projections and a ReLU at its end; or, as the first, the stem."""

    def __init__(self, tensors, prefix, stride):
        super().__init__()
        self.convs = sorted(
            name.removeprefix(f"{prefix}/") for name in tensors if name.startswith(f"{prefix}/conv")
        )
        for conv in self.convs:
            kernel = tensors[f"{prefix}/{conv}"].permute(3, 2, 0, 1)
            self.register_buffer(conv, kernel.contiguous(memory_format=torch.channels_last))
            norm = conv.replace("conv", "bn")
            self.add_module(norm, BatchNorm(tensors, f"{prefix}/{norm}"))
        self.stride = stride

    def unit(self, x, name, stride, distances):
        """Convolution and BatchNorm."""
        kernel = getattr(self, name)
        y = F.conv2d(x, kernel, stride=stride, padding=(kernel.shape[-1] - 1) // 2)
        return getattr(self, name.replace("conv", "bn"))(y, distances)

    def forward(self, x, distances):
        """The next block's input."""
        if "conv" in self.convs:
            return F.relu(self.unit(x, "conv", 1, distances))
        y = F.relu(self.unit(x, "conv1", self.stride, distances))
        y = self.unit(y, "conv2", 1, distances)
        if "conv3" in self.convs:
            x = self.unit(x, "conv3", self.stride, distances)
        return F.relu(x + y)


class Problem(torch.nn.Module):
    """The network, and the loss of images."""

    def __init__(self, tensors, settings):
        super().__init__()
        strides = settings["strides"]
        blocks = [Block(tensors, f"block{i:02d}", s) for i, s in enumerate(strides)]
        self.blocks = torch.nn.ModuleList(blocks)
        self.register_buffer("head", tensors["head"])
        self.register_buffer("labels", tensors["labels"].long())
        self.settings = settings

    def forward(self, x):
        """Cross-entropy, statistics and total variation, weighted."""
        y, distances = x, []
        for block in self.blocks:
            y = block(y, distances)
        logits = y.mean((2, 3)) @ self.head
        right, down = x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]
        diagonal, other = x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
        variation = sum(torch.norm(d) for d in (right, down, diagonal, other))
        return (
            F.cross_entropy(logits, self.labels)
            + self.settings["statistics_weight"] * sum(distances)
            + self.settings["total_variation_weight"] * variation
        )


def descend(loss_fn, start, settings, num_steps):
    """Losses before every step of Adam on the images."""
    images = start.clone(memory_format=torch.channels_last).requires_grad_()
    adam = torch.optim.Adam([images], lr=settings["learning_rate"])
    losses = []
    for _ in range(num_steps):
        adam.zero_grad(set_to_none=True)
        loss = loss_fn(images)
        loss.backward()
        adam.step()
        with torch.no_grad():
            images.clamp_(settings["low"], settings["high"])
        losses.append(loss.detach())
    return torch.stack(losses)


def read_tensors(path, device):
    """Named tensors and settings: of a line of JSON, then the bytes of all."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<q", file.read(8))
        header, data = json.loads(file.read(length)), bytearray(file.read())
    tensors = {}
    for name, kind, shape, offset in header["tensors"]:
        dtype = {"f4": torch.float32, "i4": torch.int32}[kind]
        count = 1
        for n in shape:
            count *= n
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=offset)
        tensors[name] = flat.reshape(shape).to(device)
    return tensors, header["settings"]


def answer(request, kept):
    """The answer to one request; `kept` is what goes from one to the next."""
    if "load" in request:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tensors, settings = read_tensors(request["load"], device)
        start = tensors["start"].permute(0, 3, 1, 2)
        problem = Problem(tensors, settings)
        kept |= {"eager": problem, "start": start, "settings": settings}
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        return {"device": name, "version": torch.__version__}
    exact = "losses" in request  # JAX's default on such a card is TF32, but for "highest"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
    given = (kept["start"], kept["settings"])
    if exact:
        return {"losses": descend(kept["eager"], *given, request["losses"]).tolist()}
    if request["time"] not in kept:
        kept[request["time"]] = torch.compile(kept["eager"])
    since = time.perf_counter()
    descend(kept[request["time"]], *given, request["steps"]).cpu()  # waits for the device
    return {"seconds": time.perf_counter() - since}


def main():
    """Answers until the input ends; an error is an answer."""
    kept = {}
    # Whatever PyTorch or a compiler prints goes to the standard error output.
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.backends.cudnn.benchmark = True
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), kept)
        except Exception as error:  # noqa: BLE001  the asker says what is to be done about it
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
