"""The ways to make images, by name: what `--method` of the jobs chooses from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpmi.applications.state import ApplicationRun
from jaxpmi.applications.state import ApplicationState
from jaxpmi.applications.synthesis import Batch
from jaxpmi.applications.synthesis import Request
from jaxpmi.applications.synthesis import Synthesiser
from jaxpmi.augment import pixel_range
from jaxpmi.config import Config
from jaxpmi.inversion.contrastive_inversion import contrastive_inversion
from jaxpmi.inversion.contrastive_inversion import init_contrastive_inversion
from jaxpmi.inversion.deep_inversion import Classifier
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.deep_inversion import first_images
from jaxpmi.inversion.deep_inversion import noise_start
from jaxpmi.inversion.fast_inversion import fast_inversion
from jaxpmi.inversion.fast_inversion import init_fast_inversion
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.types import PRNGKey


def make_noise(
    carried: tuple[()], request: Request, run: ApplicationRun, student_model: Any
) -> tuple[tuple[()], Batch]:
    """Standard-normal noise, clipped to valid pixels: what must be beaten."""
    del student_model
    low, high = pixel_range(request.mean, request.std)
    images = noise_start(request.labels, request.key, image_shape=run.stream.image_shape)
    images = jnp.clip(images, low[None, None, None], high[None, None, None])
    return carried, Batch(images, jnp.zeros(()), {}, jnp.asarray(True))


def make_by_deep_inversion(
    carried: tuple[()], request: Request, run: ApplicationRun, student_model: BlockwiseModel | None
) -> tuple[tuple[()], Batch]:
    """DeepInversion from noise; adaptive, where there is a student to compete with."""
    config, student = run.config.deep_inversion, request.student
    if student is None:
        config, student_model = dataclasses.replace(config, competition_weight=0.0), None
    else:
        student = Classifier(student.variables, student.head)
    key_start, key = jax.random.split(request.key)
    limits, shape = pixel_range(request.mean, request.std), run.stream.image_shape
    result = deep_inversion(
        request.teacher.variables,
        request.teacher.head,
        request.labels,
        first_images(request.labels, key_start, *limits, image_shape=shape, config=config),
        *limits,
        key,
        model=run.model,
        config=config,
        student=student,
        student_model=student_model,
    )
    return carried, Batch(result.images, result.loss, result.terms, result.finite)


def make_by_contrastive_inversion(
    carried: Any, request: Request, run: ApplicationRun, student_model: BlockwiseModel | None
) -> tuple[Any, Batch]:
    """CMI, or FastDFKD where the method is that."""
    fast = run.config.method == "fast_dfkd"
    shape = {} if fast else {"image_shape": run.stream.image_shape}
    carried, solution = (fast_inversion if fast else contrastive_inversion)(
        carried,
        request.teacher.variables,
        request.teacher.head,
        request.labels,
        None if request.student is None else tuple(request.student),
        request.key,
        mean=request.mean,
        std=request.std,
        model=run.model,
        student_model=None if request.student is None else student_model,
        config=run.config.cmi,
        **shape,
    )
    return carried, Batch(solution.x, solution.loss, solution.terms, solution.finite)


def _carry_nothing(run: ApplicationRun, state: ApplicationState, key: PRNGKey) -> tuple[()]:
    del run, state, key
    return ()


def _begin_contrastive(run: ApplicationRun, state: ApplicationState, key: PRNGKey) -> Any:
    shape, config = run.stream.image_shape, run.config.cmi
    return init_contrastive_inversion(
        key, state.network.variables, shape, mean=state.mean, model=run.model, config=config
    )


def _begin_fast(run: ApplicationRun, state: ApplicationState, key: PRNGKey) -> Any:
    shape, config = run.stream.image_shape, run.config.cmi
    variables = state.network.variables
    return init_fast_inversion(key, variables, shape, mean=state.mean, config=config)


def _deep_inversion_batch(config: Config) -> int:
    return config.deep_inversion.batch_size


def _contrastive_batch(config: Config) -> int:
    return config.cmi.batch_size


_DEEP = Synthesiser(_deep_inversion_batch, _carry_nothing, make_by_deep_inversion, adapts=False)
_CONTRASTIVE = Synthesiser(
    _contrastive_batch, _begin_contrastive, make_by_contrastive_inversion, adapts=True
)
SYNTHESISERS = {
    "noise": _DEEP._replace(make=make_noise),
    "deep_inversion": _DEEP,
    "adaptive_deep_inversion": _DEEP._replace(adapts=True),
    "cmi": _CONTRASTIVE,
    "fast_dfkd": _CONTRASTIVE._replace(begin=_begin_fast),
}
"""As `config.method` names them."""
