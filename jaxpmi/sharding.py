"""Placement of arrays on all local devices; the only module that knows the mesh.

Batches are split over the mesh's one axis, everything else is replicated, and computation follows
data: the same jitted functions run on one device or many, and reductions over the batch become
reductions over all devices. Nothing needs a flag.
"""

import functools

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec


@functools.cache
def make_mesh(num_devices: int | None = None) -> jax.sharding.Mesh:
    """A mesh of the first `num_devices` devices (None: all) along the axis "data"."""
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(tree, mesh: jax.sharding.Mesh, *, axis: int = 0):
    """Places every array of the tree with its batch axis split over the devices.

    Raises ValueError where the axis is not divisible by the number of devices.
    """
    spec = PartitionSpec(*(None,) * axis, "data")

    def place(array):
        size = np.shape(array)[axis]
        if size % mesh.size:
            down = size - size % mesh.size
            raise ValueError(
                f"a batch of {size} is not divisible by {mesh.size} devices; use "
                f"{down or mesh.size} or {down + mesh.size}."
            )
        return jax.device_put(array, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def constrain_batch(x: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
    """Inside `jit`: splits the first axis over the devices, where their number divides it."""
    if x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data")))


def replicate(tree, mesh: jax.sharding.Mesh):
    """Places every array of the tree on all devices."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
