"""Networks written before the built-in ones were Flax modules: the same numbers come out.

The files of tests/golden/networks_of_version_2 and what is expected of them were written by the
library as it was before (version 2 of the format), with random parameters and moments.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpmi
from jaxpmi.blocks.blockwise import forward
from jaxpmi.types import Moments

FOLDER = Path(__file__).parents[1] / "golden" / "networks_of_version_2"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem != "expected")


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_moments_and_gradients_are_the_old_ones(name, train):
    network = jaxpmi.load_network(FOLDER / f"{name}.npz")
    with np.load(FOLDER / "expected.npz") as file:
        x = file[f"{name}/x"]
        want = {key: file[f"{name}/{train}/{key}"] for key in ("features", "moments", "gradient")}

    @jax.jit
    def run(variables, x):
        def loss(x):
            seen = forward(network.model, variables, x, train=train)
            return jnp.square(seen.features).sum(), seen

        return jax.value_and_grad(loss, has_aux=True)(x)

    (_, seen), gradient = run(network.variables, x)
    layers = jax.tree.leaves(seen.moments, is_leaf=lambda node: isinstance(node, Moments))
    moments = np.concatenate([np.ravel(part) for layer in layers for part in layer])
    got = {"features": seen.features, "moments": moments, "gradient": gradient}
    for key, value in want.items():
        # Moments of a few pixels, layer after layer, make rounding errors large.
        share = 1e-4 if key == "gradient" else 1e-5
        tolerance = (1e-3 if train and "efficient" in name else share) * np.abs(value).max()
        np.testing.assert_allclose(got[key], value, rtol=0, atol=tolerance, err_msg=key)


def test_every_kind_of_network_of_images_is_among_them():
    assert {"resnet_small", "resnet32", "resnet18", "preact_resnet18"} <= set(NAMES)
    assert {"plain_cnn", "efficientnet_lite0", "vit_small"} <= set(NAMES)
