"""The ways to make images, by name: what `--method` of the jobs chooses from."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpmi.config import Config
from jaxpmi.inversion.cmi import cmi
from jaxpmi.inversion.cmi import init_cmi
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.deep_inversion import noise_start
from jaxpmi.inversion.fast_dfkd import fast_dfkd
from jaxpmi.inversion.fast_dfkd import init_fast_dfkd
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.synthetic import as_stored
from jaxpmi.jobs.synthesis import Synthesiser
from jaxpmi.lookup import find_kind
from jaxpmi.network import Network
from jaxpmi.optimise.minimise import Solution
from jaxpmi.types import PRNGKey


def make_noise(
    config: Config,
    carried: tuple[()],
    teacher: Network,
    labels: jax.Array,
    key: PRNGKey,
    student: Network | None,
) -> tuple[tuple[()], Synthetic]:
    """Standard-normal noise, clipped to valid pixels: what must be beaten."""
    del config, student
    noise = noise_start(labels, key, image_shape=teacher.image_shape)
    nothing = Solution(noise, jnp.zeros(()), jnp.zeros((0,)), {}, jnp.asarray(True))
    return carried, as_stored(teacher, nothing, labels)


def make_by_deep_inversion(
    config: Config,
    carried: tuple[()],
    teacher: Network,
    labels: jax.Array,
    key: PRNGKey,
    student: Network | None,
) -> tuple[tuple[()], Synthetic]:
    """DeepInversion from noise; adaptive, where there is a student to compete with."""
    settings = config.deep_inversion
    if student is None:
        settings = dataclasses.replace(settings, competition_weight=0.0)
    return carried, deep_inversion(teacher, labels, key, config=settings, student=student)


def _by_generator(init, invert):
    """CMI or FastDFKD, with what the calls before have left."""

    def begin(config, teacher, key):
        return init(teacher, key, config=config.cmi)

    def make(config, carried, teacher, labels, key, student):
        return invert(carried, teacher, labels, key, config=config.cmi, student=student)

    return Synthesiser(_generator_batch, begin, make, adapts=True)


def _carry_nothing(config, teacher, key):
    del config, teacher, key
    return ()


def _deep_inversion_batch(config):
    return config.deep_inversion.batch_size


def _generator_batch(config):
    return config.cmi.batch_size


_DEEP = Synthesiser(_deep_inversion_batch, _carry_nothing, make_by_deep_inversion, adapts=False)
SYNTHESISERS = {
    "noise": _DEEP._replace(make=make_noise),
    "deep_inversion": _DEEP,
    "adaptive_deep_inversion": _DEEP._replace(adapts=True),
    "cmi": _by_generator(init_cmi, cmi),
    "fast_dfkd": _by_generator(init_fast_dfkd, fast_dfkd),
}
"""As `config.method` names them."""


def find_synthesiser(name: str) -> Synthesiser:
    """The way to make images that a job's `method` names: a key of `SYNTHESISERS`, or one's own."""
    remedy = "make it a jaxpmi.Synthesiser"
    return find_kind(name, SYNTHESISERS, "method", Synthesiser, remedy=remedy)
