import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import jaxpmi


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        layers = [nnx.Linear(4, 4, rngs=rngs) for _ in range(2)]
        self.layers = nnx.List(layers) if hasattr(nnx, "List") else layers
        self.scale = nnx.Param(np.ones((4,), np.float32))
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x * self.scale[...][None])


NAMES = {"conv": "stem.0", "norm": "stem.1", "layers/0": ("q", "k"), "scale": "gamma"}


def stored():
    rng = np.random.default_rng(0)
    shapes = {"stem.0.weight": (4, 3, 3, 3), "stem.0.bias": (4,), "gamma": (1, 1, 4)}
    shapes |= {f"stem.1.{name}": (4,) for name in ("weight", "bias", "running_mean")}
    shapes |= {"q.weight": (2, 4), "k.weight": (2, 4), "q.bias": (2,), "k.bias": (2,)}
    shapes |= {"layers.1.weight": (4, 4, 1, 1), "layers.1.bias": (4,)}
    shapes |= {"head.weight": (5, 4), "head.bias": (5,)}
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    tensors["stem.1.running_var"] = rng.uniform(0.5, 1.5, 4).astype(np.float32)
    return tensors | {"stem.1.num_batches_tracked": np.asarray(7)}


def by_hand(tensors, images):
    """What PyTorch would compute, in numpy."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = images.shape[1:3]
    windows = np.stack(
        [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)], -1
    )  # B, H, W, C, 9
    kernel = tensors["stem.0.weight"].reshape(4, 3, 9)
    x = np.einsum("bhwcs,dcs->bhwd", windows, kernel) + tensors["stem.0.bias"]
    norm = {name: tensors[f"stem.1.{name}"] for name in ("weight", "bias", "running_mean")}
    x = (x - norm["running_mean"]) / np.sqrt(tensors["stem.1.running_var"] + 1e-5)
    x = np.maximum(x * norm["weight"] + norm["bias"], 0).mean((1, 2))
    joined = (np.concatenate([tensors[f"{n}.{end}"] for n in "qk"]) for end in ("weight", "bias"))
    weight, bias = joined
    x = np.maximum(x @ weight.T + bias, 0)
    x = np.maximum(x @ tensors["layers.1.weight"][..., 0, 0].T + tensors["layers.1.bias"], 0)
    return x * tensors["gamma"][0] @ tensors["head.weight"].T + tensors["head.bias"]


def test_a_network_of_ones_own_computes_what_pytorch_would(tmp_path):
    tensors = stored()
    save_file({f"module.{name}": t for name, t in tensors.items()}, tmp_path / "net.safetensors")
    read = jaxpmi.read_tensors(tmp_path / "net.safetensors")
    net = jaxpmi.set_tensors(Net(nnx.Rngs(1)), read, NAMES)
    net.eval()
    images = np.random.default_rng(1).standard_normal((2, 5, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(net(images), by_hand(tensors, images), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("head.bias"), "Net does not fit the model: it lacks head.bias"),
        (lambda t: t.update(extra=np.ones(2)), "it also has extra"),
        (
            lambda t: t.update({"head.weight": np.ones((5, 3))}),
            r"head.weight is \(5, 3\), not \(5, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(edit, message):
    tensors = stored()
    edit(tensors)
    with pytest.raises(ValueError, match=message):
        jaxpmi.set_tensors(Net(nnx.Rngs(1)), tensors, NAMES)
