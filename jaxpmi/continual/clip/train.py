"""Training of CLIP's adapters on one task: many AdamW steps as one compiled program.

The classifier is the text tower: a class is the mean of its prompts' normalised features, and both
towers' adapters are trained. The pretrained base is data that is never updated or copied.
(Tong et al., 2025; docs/methods/clip.md, eq. 3.)
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpmi.augment import augment
from jaxpmi.config import AugmentConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual import losses
from jaxpmi.continual.clip.variants import ClipVariant
from jaxpmi.continual.samples import from_samples
from jaxpmi.continual.train import Chunk
from jaxpmi.continual.train import ChunkMetrics
from jaxpmi.continual.train import add_terms
from jaxpmi.continual.train import no_terms
from jaxpmi.features.projection import text_prototypes
from jaxpmi.models.clip import Clip
from jaxpmi.models.clip import ClipAdapters
from jaxpmi.models.clip import ClipVariables
from jaxpmi.models.clip import encode_images
from jaxpmi.models.clip import encode_text
from jaxpmi.models.clip import similarity_logits
from jaxpmi.models.clip import with_clip_adapters
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.optimise.schedules import learning_rates
from jaxpmi.types import PRNGKey

TERMS = ("cross_entropy", "replay_logits", "text_features", "all_classes", "joint")


@dataclasses.dataclass(frozen=True)
class ClipProgram:
    """Everything static about the steps; equal programs compile once."""

    model: Clip  # with adapters, see `adapted`
    weight_decay: float
    losses: MethodConfig
    augment: AugmentConfig
    first_block: int = 0  # whose inputs the samples of the task are: images, unless synthetic
    replay_first_block: int = 0  # whose inputs the samples of old classes are
    live_texts: bool = False  # the teacher's logits have the student's text features


class ClipLearner(NamedTuple):
    """What the steps change."""

    adapters: ClipAdapters
    opt_state: optax.OptState


class ClipTask(NamedTuple):
    """What the steps of a task are given."""

    base: ClipVariables  # without adapters
    teacher: ClipAdapters  # frozen before this task
    tokens: jax.Array  # i32[C, P, T], P prompts per class
    new_mask: jax.Array  # f32[C]
    old_mask: jax.Array  # f32[C]; all 0 in the first task, whose steps need no replay
    mean: jax.Array  # f32[channels], of pixels in [0, 1]
    std: jax.Array  # f32[channels]


def clip_optimiser(weight_decay: float) -> optax.GradientTransformation:
    """AdamW's direction; the step scales it by the learning rate."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


def clip_learning_rates(config: TrainConfig, num_steps: int, variant: ClipVariant) -> np.ndarray:
    """The learning rate of every step, f32[S]: linear warm-up, then a cosine.

    It spans all steps, or as many as `variant.schedule_epochs` have; beyond these it goes on as a
    cosine does. At progress t, 1 being its end, it is (1 + cos(pi t)) / 2 of the peak: 0 at the
    end, .75 at 5/3. The "quarter_cosine" is cos(99 pi t / 200): .016 at the end, -.85 at 5/3
    (docs/methods/clip.md, eq. 4).
    """
    length = num_steps
    if variant.schedule_epochs is not None:
        length = max(round(num_steps * variant.schedule_epochs / config.epochs), 1)
    warmup = min(config.warmup_steps, length - 1)

    def decay(step):
        angle = jnp.pi * step / float(length - warmup)
        if variant.schedule == "quarter_cosine":
            return jnp.cos(0.495 * angle)
        return 0.5 * (1.0 + jnp.cos(angle))

    rates = learning_rates(
        num_steps, config.learning_rate, decay, warmup_steps=warmup, warmup="from_first"
    )
    return rates


@functools.partial(jax.jit, static_argnames="model")
def class_text_features(model: Clip, variables: ClipVariables, tokens: jax.Array) -> jax.Array:
    """The classifier: unit text features f32[C, E] of prompts i32[C, P, T], averaged over P."""
    return _class_text_features(model, variables, tokens, None)


def zero_shot_network(
    model: Clip,
    variables: ClipVariables,
    tokens: jax.Array,
    class_names: Sequence[str],
    *,
    mean: jax.Array,
    std: jax.Array,
) -> Network:
    """The image tower with a head of class names.

    The head's columns are `class_text_features`. An image feature's norm does not change which is
    the largest logit, so it stays as it is.

    Args:
      model: both towers.
      variables: theirs.
      tokens: i32[C, P, T], token ids of P captions of every class.
      class_names: C of them.
      mean: f32[channels], of pixels in [0, 1].
      std: f32[channels].
    """
    head = Head(class_text_features(model, variables, tokens).T)
    names = tuple(class_names)
    return Network(variables.image, head, mean, std, model.image, model.image_shape, names)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="learner")
def clip_train_steps(
    learner: ClipLearner, chunk: Chunk, task: ClipTask, key: PRNGKey, *, program: ClipProgram
) -> tuple[ClipLearner, ChunkMetrics]:
    """Runs `chunk.num_steps` steps of AdamW on the adapters; terms are named in `TERMS`."""
    teacher = with_clip_adapters(program.model, task.base, task.teacher)
    teacher_texts = class_text_features(program.model, teacher, task.tokens)

    def loss_fn(adapters, metrics, index):
        step = chunk.first_step + index
        terms = _loss_terms(
            adapters,
            batch=jax.tree.map(lambda part: part[index], chunk[:4]),
            task=task,
            teacher=(teacher, teacher_texts),
            program=program,
            key=jax.random.fold_in(key, step),
        )
        return sum(terms.values()), (add_terms(metrics, terms, step), None)

    end, _ = descend(
        loss_fn,
        Descent(learner.adapters, learner.opt_state, no_terms(TERMS)),
        tx=clip_optimiser(program.weight_decay),
        learning_rates=chunk.learning_rates,
        num_steps=chunk.num_steps,
    )
    return ClipLearner(end.params, end.opt_state), end.state


def _loss_terms(adapters, *, batch, task, teacher, program, key):
    """The weighted terms of one step."""
    model, config = program.model, program.losses
    images, labels, replay_images, replay_labels = batch
    teacher, teacher_texts = teacher
    keys = jax.random.split(key, 5)
    moments = task.mean, task.std
    x = from_samples(images, *moments, first_block=program.first_block)
    if program.first_block == 0:
        x = augment(x, keys[0], program.augment, -task.mean / task.std)
    replay = from_samples(replay_images, *moments, first_block=program.replay_first_block)
    encode = functools.partial(encode_images, model, first_block=program.first_block)
    encode_old = functools.partial(encode_images, model, first_block=program.replay_first_block)
    student = with_clip_adapters(model, task.base, adapters)
    texts = _class_text_features(model, student, task.tokens, keys[1])
    features = encode(student, x, key=keys[2])
    replay_features = encode_old(student, replay, key=keys[3])

    def logits(image_features, texts=texts):
        return similarity_logits(image_features, texts, task.base.logit_scale)

    # With "live" texts, whose gradient is not stopped, the teacher moves with the student.
    live = program.live_texts
    wanted = logits(encode_old(teacher, replay), texts if live else teacher_texts)
    seen = task.new_mask + task.old_mask

    def over_all(features, replay_features, texts):
        new = losses.masked_cross_entropy(logits(features, texts), labels, seen)
        return new + losses.masked_cross_entropy(
            logits(replay_features, texts), replay_labels, seen
        )

    to_text = over_all(*jax.lax.stop_gradient((features, replay_features)), texts)
    to_image = over_all(features, replay_features, jax.lax.stop_gradient(texts))
    old = task.old_mask[:, None]
    moved = jnp.abs(texts - teacher_texts) * old
    factors = losses.distillation_factors(
        task.new_mask.sum(),
        task.old_mask.sum(),
        ce=config.ce_weight,
        hkd=config.hkd_weight,
        rkd=config.tkd_weight,
    )
    later = (task.old_mask.sum() > 0).astype(jnp.float32)
    return {
        "cross_entropy": factors.ce
        * losses.masked_cross_entropy(logits(features), labels, task.new_mask),
        "replay_logits": factors.hkd
        * losses.hard_distillation(logits(replay_features), wanted, task.old_mask, detach=not live),
        "text_features": factors.rkd * moved.sum() / jnp.maximum(old.sum() * texts.shape[1], 1.0),
        "all_classes": later * config.ft_weight * to_text,
        "joint": later * config.joint_weight * to_image,
    }


def _class_text_features(model, variables, tokens, key):
    classes, prompts, length = tokens.shape
    said = encode_text(model, variables, tokens.reshape(-1, length), key=key)
    return text_prototypes(said.reshape(classes, prompts, -1))
