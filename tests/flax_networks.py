"""Networks as users of Flax write them, NNX and Linen, trained for seconds on made-up digits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import small_network
from flax import nnx

import jaxpmi

CLASSES, SHAPE = small_network.NUM_CLASSES, small_network.SHAPE
PIXELS = {"mean": small_network.MEAN, "std": small_network.STD, "image_shape": SHAPE}


def pool(x):
    """Mean over space."""
    return x.mean((1, 2))


class OwnBatchNorm(nnx.BatchNorm):
    """A subclass as users make them."""


class Unit(nnx.Module):
    """conv - norm - ReLU - dropout."""

    def __init__(self, inputs, outputs, stride=1, *, norm, rngs):
        self.conv = nnx.Conv(inputs, outputs, (3, 3), strides=stride, rngs=rngs)
        self.norm = norm(outputs, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.drop(nnx.relu(self.norm(self.conv(x))))


class Cnn(nnx.Module):
    """Four units, of which two are equal, and a classifier with a bias."""

    def __init__(self, *, norm=nnx.BatchNorm, rngs):
        unit = functools.partial(Unit, norm=norm, rngs=rngs)
        self.stem, self.one, self.two = unit(1, 8), unit(8, 8), unit(8, 8)
        self.down, self.fc = unit(8, 16, 2), nnx.Linear(16, CLASSES, rngs=rngs)

    def features(self, x):
        """f32[B, 16]."""
        return pool(self.down(self.two(self.one(self.stem(x)))))

    def __call__(self, x):
        return self.fc(self.features(x))

    def as_network(self, **options):
        """Block by block."""
        parts = [self.stem, self.one, self.two, self.down, pool]
        return jaxpmi.from_nnx(self, blocks=parts, head=self.fc, **PIXELS, **options)


class Rematted(nnx.Module):
    """A unit whose activations are computed anew for its gradient."""

    def __init__(self, *, rngs):
        self.unit = Unit(1, 8, norm=nnx.BatchNorm, rngs=rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.fc(pool(nnx.remat(lambda unit, x: unit(x))(self.unit, x)))


class Scanned(nnx.Module):
    """Three equal units with a leading axis, run by one scan."""

    def __init__(self, *, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return Unit(8, 8, norm=nnx.BatchNorm, rngs=rngs)

        self.stem = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.units = make(rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(unit, x):
            return unit(x)

        return self.fc(pool(run(self.units, self.stem(x))))


class Twice(nnx.Module):
    """One unit, called twice."""

    def __init__(self, *, rngs):
        self.stem = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.unit = Unit(8, 8, norm=nnx.BatchNorm, rngs=rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.fc(pool(self.unit(self.unit(self.stem(x)))))


class LinenCnn(nn.Module):
    """Three convolutions with a norm each, and a classifier with a bias."""

    norm: str = "batch"

    @nn.compact
    def __call__(self, x, train=False):
        for width, stride in ((8, 1), (8, 1), (16, 2)):
            x = nn.Conv(width, (3, 3), strides=stride)(x)
            if self.norm == "batch":
                x = nn.BatchNorm(use_running_average=not train)(x)
            else:
                x = nn.GroupNorm(4)(x) if self.norm == "group" else nn.LayerNorm()(x)
            x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(CLASSES)(pool(x))


@functools.cache
def data():
    """Images u8[N, H, W, 1], labels i32[N], and the images normalised."""
    raw, labels = small_network.blobs(32)
    return raw, labels, jaxpmi.normalise(jnp.asarray(raw), PIXELS["mean"], PIXELS["std"])


def train(network, num_steps=80):
    """A network trained by the library on all its parameters, BatchNorm's moments with them."""
    raw, labels, x = data()
    params, tx = (network.variables.params, network.head), optax.adam(3e-3)

    def loss_fn(params, stats, x, y):
        variables = jaxpmi.Variables(params[0], stats)
        seen = jaxpmi.forward(network.model, variables, x, train=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(params[1](seen.features), y)
        return loss.mean(), seen.moments

    @jax.jit
    def run(params, stats, rows):
        def step(carry, rows):
            params, stats, state = carry
            grads, moments = jax.grad(loss_fn, has_aux=True)(params, stats, x[rows], y[rows])
            updates, state = tx.update(grads, state)
            stats = jaxpmi.update_batch_stats(stats, moments)
            return (optax.apply_updates(params, updates), stats, state), None

        y = jnp.asarray(labels)
        return jax.lax.scan(step, (params, stats, tx.init(params)), rows)[0][:2]

    rows = np.random.default_rng(0).integers(0, len(labels), (num_steps, 32))
    (params, head), stats = run(params, network.variables.batch_stats, rows)
    return network.replace(variables=jaxpmi.Variables(params, stats), head=head)


@functools.cache
def trained_cnn(norm=nnx.BatchNorm):
    """A trained `Cnn`, in evaluation mode, as a module."""
    module = Cnn(norm=norm, rngs=nnx.Rngs(0))
    module.eval()
    return jaxpmi.to_nnx(train(module.as_network()), module)


@functools.cache
def trained_linen(norm="batch"):
    """A Linen module, its trained variables, and the network they make."""
    module = LinenCnn(norm)
    variables = module.init(jax.random.key(0), data()[2][:2])
    network = jaxpmi.from_linen(module, variables, head="Dense_0", train_argument="train", **PIXELS)
    variables = jaxpmi.to_linen_variables(train(network))
    network = jaxpmi.from_linen(module, variables, head="Dense_0", train_argument="train", **PIXELS)
    return module, variables, network
