"""From a config to a CLIP run about to begin: classes, weights, prompts and the first state."""

import functools
import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import Config
from jaxpmi.continual.clip.pretraining import pretrain_clip
from jaxpmi.continual.clip.state import ClipRun
from jaxpmi.continual.clip.state import ClipState
from jaxpmi.continual.clip.train import clip_optimiser
from jaxpmi.continual.clip.variants import CLIP_VARIANTS
from jaxpmi.continual.learners import find_method
from jaxpmi.continual.start import Inputs
from jaxpmi.continual.start import empty_replay
from jaxpmi.continual.start import least_classes
from jaxpmi.continual.start import most_replay_samples
from jaxpmi.data import TaskStream
from jaxpmi.data import class_order
from jaxpmi.data import open_source
from jaxpmi.data import split_tasks
from jaxpmi.data.class_names import check_names_are_words
from jaxpmi.data.class_split import split_classes
from jaxpmi.models.clip import CLIP_MEAN
from jaxpmi.models.clip import CLIP_STD
from jaxpmi.models.clip import clip_tiny
from jaxpmi.models.clip import init_clip
from jaxpmi.models.tokenizer import check_class_names
from jaxpmi.models.tokenizer import word_tokenizer
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.remember import empty_memory
from jaxpmi.runs.phases import NonFiniteLossError
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.weights.clip import load_clip

PRETRAINED = "pretrained.npz"  # in the workdir: a small CLIP, for processes that resume the run


def open_clip_data(config: Config) -> Inputs:
    """Opens the data set of a run; CLIP's weights are read when it begins."""
    return Inputs(config, {"data": open_source(config.data)}, None)


def open_clip_run(config: Config, inputs: Inputs | None = None) -> tuple[ClipRun, tuple[int, ...]]:
    """Reads weights, or trains a small CLIP; also returns the order of the classes.

    Args:
      config: its settings.
      inputs: what was opened; None: it is opened here.
    """
    source = (inputs or open_clip_data(config)).sources["data"]
    check_names_are_words(source.class_names)
    check_class_names(source.class_names)
    pretraining, known, unseen = _split(config, source.class_names)
    method = find_method(config.method)
    tasks = split_tasks(known, config.data.tasks, least_later=least_classes(method))
    tasks += (unseen,) if unseen else ()
    stream = TaskStream(source, tasks, allow_past=method.all_data, name_only=bool(unseen))
    named = TaskStream(source, (unseen,)) if unseen else None
    if named is not None:
        named.begin(0)
    order = (*known, *unseen)
    names = [source.class_names[label] for label in (*order, *pretraining)]
    prompts = [t.format(name) for name in names for t in config.clip.templates]
    variant = CLIP_VARIANTS[config.clip.variant]
    mean, std = CLIP_MEAN, CLIP_STD
    if config.model.weights is not None:
        loaded = load_clip(
            config.model.weights,
            statistics_axis=variant.statistics_axis,
            activation=config.clip.activation,
            image_size=config.data.image_size,
        )
        model, base, tokenizer, mean, std = loaded
    else:
        context = 2 + max(len(prompt.split()) + 1 for prompt in prompts)
        tokenizer = word_tokenizer(prompts, context)
        model = clip_tiny(tokenizer.vocabulary, context, statistics_axis=variant.statistics_axis)
    tokens = tokenizer.encode(prompts).reshape(len(names), len(config.clip.templates), -1)
    wanted = model.image_shape
    if source.image_shape != wanted:
        raise ValueError(
            f"images are {source.image_shape}, but this CLIP takes {wanted}; set data.image_size "
            f"to {wanted[0]} and use RGB images."
        )
    mean, std = config.data.mean or mean, config.data.std or std
    if config.model.weights is None:
        labels = source.labels["train"]
        rows = np.flatnonzero(np.isin(labels, pretraining))
        place = np.full(source.num_classes, -1, np.int32)
        place[list(pretraining)] = np.arange(len(pretraining))
        images = source.read("train", rows)
        base = _pretrained(
            config, model, images, place[labels[rows]], tokens[len(order) :], mean, std
        )
    mesh = make_mesh()
    tokens = replicate(jnp.asarray(tokens[: len(order)]), mesh)
    base = replicate(base, mesh)
    moments = (replicate(jnp.asarray(x, jnp.float32), mesh) for x in (mean, std))
    run = ClipRun(config, method, stream, mesh, model, base, tokens, *moments, variant, named)
    return run, order


def initial_clip_state(run: ClipRun, order: tuple[int, ...]) -> ClipState:
    """The state before the first task."""
    key_adapters, key_run = jax.random.split(jax.random.key(run.config.seed))
    adapters = run.fresh_adapters(key_adapters)
    fill = jax.jit(functools.partial(_first_state, run))
    state = fill(adapters, jnp.asarray(order, jnp.int32), key_run)
    return replicate(state, run.mesh)


def _first_state(run, adapters, order, key):
    stream, features = run.stream, run.clip.sizes.features
    head = Head(jnp.zeros((features, stream.num_classes)))
    network = Network(
        run.base.image,
        head,
        run.mean,
        run.std,
        run.clip.image,
        stream.image_shape,
        stream.class_names,
    )
    memory, base_memory = (), ()
    if run.method.replay == "inversion":
        room = functools.partial(
            empty_memory,
            network,
            settings=run.config.cfs,
            layer_moments=run.base.image.batch_stats,
        )
        memory = room(config=run.config.inversion)
        if run.named is not None:
            base_memory = room(config=run.base_config.inversion)
    unmeasured = jnp.full((stream.num_tasks, stream.num_tasks), jnp.nan)
    zero = jnp.zeros((), jnp.int32)
    name_samples = 0
    if run.named is not None:
        classes = len(stream.tasks[-1])
        name_samples = run.config.clip.name_only.images_per_class * classes
    return ClipState(
        adapters=adapters,
        teacher=adapters,
        opt_state=clip_optimiser(run.config.train.weight_decay).init(adapters),
        memory=memory,
        base_memory=base_memory,
        replay=empty_replay(run, network, most_replay_samples(run)),
        name_samples=empty_replay(run, network, name_samples),
        accuracy=unmeasured,
        task_accuracy=unmeasured,
        zero_shot=unmeasured[0],
        name_accuracy=jnp.full(3, jnp.nan),
        class_order=order,
        key=key,
        task=zero,
        phase=zero,
        step=zero,
    )


def _split(config, names):
    """Labels for pretraining, for the tasks in their order, and of classes with only a name."""
    wanted = config.clip.name_only.classes
    unseen = [] if isinstance(wanted, int) else [_find(names, name) for name in wanted]
    rest = [label for label in range(len(names)) if label not in unseen]
    pretraining, count = (), wanted if isinstance(wanted, int) else 0
    if config.model.weights is None:
        split = split_classes(
            [names[label] for label in rest],
            config.seed,
            num_pretraining=config.clip.pretraining_classes,
            num_name_only=count,
        )
        pretraining, known, drawn = ([rest[i] for i in part] for part in split)
    else:
        order = class_order(config.data, names, config.seed)
        known = [label for label in order if label not in unseen]
        known, drawn = known[: len(known) - count], known[len(known) - count :]
    return tuple(pretraining), tuple(known), tuple(unseen or drawn)


def _find(names, name):
    lowered = [other.lower() for other in names]
    if name.lower() not in lowered:
        raise ValueError(
            f"clip.name_only.classes names {name!r}, which is no class of the data set; its "
            f"classes are {', '.join(names[:5])}, ..."
        )
    return lowered.index(name.lower())


def _pretrained(config, model, images, labels, tokens, mean, std):
    """A small CLIP trained on these images, or what an earlier process of this run trained."""
    path = Path(config.workdir) / PRETRAINED
    fresh = jax.eval_shape(lambda key: init_clip(model, key), jax.random.key(0))
    leaves, treedef = jax.tree.flatten(fresh)
    # What the weights depend on: a file of other classes or settings is trained anew.
    recipe = repr((model.sizes, config.clip.pretraining, config.seed, mean, std))
    parts = (recipe.encode(), images.tobytes(), labels.tobytes(), tokens.tobytes())
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    if path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays.get("recipe")) == digest:
                stored = [jnp.asarray(arrays[str(i)]) for i in range(len(leaves))]
                return jax.tree.unflatten(treedef, stored)
    variables, metrics = pretrain_clip(
        model, images, labels, tokens, jax.random.key(config.seed),
        config=config.clip.pretraining, mean=mean, std=std,
    )  # fmt: skip
    if int(metrics.bad_step) >= 0:
        raise NonFiniteLossError(
            f"the loss of pretraining became NaN or infinite at step {int(metrics.bad_step) + 1}; "
            "lower clip.pretraining.learning_rate."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(variables))}
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, recipe=np.asarray(digest), **arrays)
    os.replace(partial, path)
    return variables
