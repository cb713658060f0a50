import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual import learners
from jaxpmi.continual import methods
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.losses import init_angle_projections
from jaxpmi.continual.training_phase import Views
from jaxpmi.continual.vdfd.class_graph import init_class_graph
from jaxpmi.continual.vdfd.gradient_records import add_record
from jaxpmi.continual.vdfd.gradient_records import empty_records
from jaxpmi.network import Head

BATCH, REPLAY, WIDTH, NUM_CLASSES = 6, 4, 5, 7
OLD = np.asarray([1, 1, 1, 0, 0, 0, 0], np.float32)
NEW = np.asarray([0, 0, 0, 1, 1, 0, 0], np.float32)
TRAIN = TrainConfig(learning_rate=0.2, milestones=(0.4, 0.6), schedule="cosine")
STAGEWISE = MethodConfig(recipe="stagewise", tuning_epochs=0.3)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensors(seed):
    """Weights of a backbone of two layers."""
    return {"conv": jnp.asarray(normal(seed, 3, 3, 2, 4)), "scale": jnp.asarray(normal(seed, 4))}


def records():
    """Of an old task of the first three classes, at other weights than those of `views`."""
    empty = empty_records(tensors(0), num_tasks=3, num_classes=3, rank=1)
    gradients = {"conv": normal(6, 4, 3), "scale": normal(7, 4, 3)}
    return add_record(empty, 0, gradients, tensors(8), jnp.arange(3), jnp.ones(3))


@functools.cache
def views(replay=REPLAY):
    arrays = dict(
        labels=jnp.asarray([3, 4, 3, 3, 4, 4]),
        replay_labels=jnp.asarray([0, 1, 2, 0])[:replay],
        features=normal(0, BATCH, WIDTH),
        replay_features=normal(1, replay, WIDTH),
        teacher_features=normal(2, BATCH, WIDTH),
        teacher_replay_features=normal(3, replay, WIDTH),
        head=Head(normal(4, WIDTH, NUM_CLASSES)),
        teacher_head=Head(normal(5, WIDTH, NUM_CLASSES)),
        auxiliary={
            "angle_maps": init_angle_projections(jax.random.key(0), WIDTH, WIDTH),
            "class_graph": init_class_graph(jax.random.key(1), WIDTH, 4, 4),
        },
        tensors=tensors(9),
        records=records(),
        new_mask=NEW,
        old_mask=OLD,
        class_weights=np.linspace(1.0, 2.0, NUM_CLASSES, dtype=np.float32),
    )
    return Views(**jax.tree.map(jnp.asarray, arrays))


def all_phases():
    """Every phase that any method can have in a later task, by a name for the test."""
    cases = {}
    configs = {"": MethodConfig(), "product-": MethodConfig(recipe="published")}
    for name, method in METHODS.items():
        for prefix, config in {**configs, "stagewise-": STAGEWISE}.items():
            for phase in method.phases(TRAIN, config):
                cases.setdefault((name, phase.loss, config.recipe), (phase, config, prefix))
    return {
        f"{prefix}{name}-{phase.name}": (phase, config)
        for (name, _, _), (phase, config, prefix) in cases.items()
    }


PHASES = all_phases()


def terms_and_gradients(phase, config):
    seen = views() if phase.replay else views(0)

    def total(parts):
        terms = phase.loss(seen._replace(**parts), config)
        return sum(terms.values()), terms

    parts = {
        name: getattr(seen, name)
        for name in ("features", "replay_features", "head", "auxiliary", "tensors")
    }
    return jax.jit(jax.grad(total, has_aux=True))(parts)


@pytest.mark.parametrize("name", PHASES)
def test_every_term_of_every_method_is_a_finite_scalar_that_trains_something(name):
    phase, config = PHASES[name]
    grads, terms = terms_and_gradients(phase, config)
    assert terms
    for term, value in terms.items():
        assert value.shape == () and np.isfinite(value), term
        assert value > 0.0, term
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    np.testing.assert_array_equal(grads["head"].kernel[:, 5:], 0.0)  # classes not seen yet
    assert np.abs(grads["head"].kernel).max() > 0.0
    if phase.trainable != "head":
        assert np.abs(grads["features"]).max() > 0.0


@pytest.mark.parametrize(
    ("method", "config", "names"),
    [
        ("finetune", MethodConfig(), {"cross_entropy"}),
        ("lwf", MethodConfig(), {"cross_entropy", "distillation"}),
        (
            "deep_inversion",
            MethodConfig(),
            {"cross_entropy", "distillation", "replay_distillation"},
        ),
        ("abd", MethodConfig(), {"local", "head", "features"}),
        ("apr", MethodConfig(), {"local", "distillation"}),
        ("r_dfcil", MethodConfig(), {"local", "hard_distillation", "angles"}),
        ("pmi", MethodConfig(recipe="published"), {"product"}),
        ("dfd", MethodConfig(), {"cross_entropy", "drift"}),
        ("vdfd", MethodConfig(), {"cross_entropy", "drift", "log_determinant"}),
    ],
)
def test_names_of_the_terms(method, config, names):
    phase = METHODS[method].phases(TRAIN, config)[0]
    if method == "pmi":
        phase = METHODS[method].phases(TRAIN, config)[1]
    _, terms = terms_and_gradients(phase, config)
    assert set(terms) == names


def test_weights_scale_their_term():
    one, two = MethodConfig(lwf_weight=1.0), MethodConfig(lwf_weight=2.0)
    (phase,) = METHODS["lwf"].phases(TRAIN, one)
    _, a = terms_and_gradients(phase, one)
    _, b = terms_and_gradients(phase, two)
    np.testing.assert_allclose(2.0 * a["distillation"], b["distillation"], rtol=1e-6)
    np.testing.assert_allclose(a["cross_entropy"], b["cross_entropy"], rtol=1e-6)


def test_the_default_recipe_separates_old_from_new_in_the_head_alone():
    """Without `joint_weight` no gradient to the features compares real images with old classes."""
    phase = METHODS["pmi"].phases(TRAIN, MethodConfig())[0]
    config = MethodConfig(abd_weight=0.0, hkd_weight=0.0, joint_weight=0.0)
    grads, terms = terms_and_gradients(phase, config)
    assert {"local", "replay_local", "head"} <= set(terms)
    larger = Head(np.where(OLD > 0, 50.0, 1.0)[None] * views().head.kernel)
    moved = views()._replace(head=larger)

    def gradient_to_real_features(seen):
        loss = lambda f: sum(phase.loss(seen._replace(features=f), config).values())  # noqa: E731
        return jax.grad(loss)(seen.features)

    want = np.asarray(gradient_to_real_features(views()))
    np.testing.assert_allclose(grads["features"], want, rtol=1e-4, atol=1e-6)
    # Old columns of the head have no say in them.
    np.testing.assert_allclose(gradient_to_real_features(moved), want, rtol=1e-4, atol=1e-6)


def test_the_joint_term_trains_the_backbone_alone():
    config = MethodConfig(joint_weight=0.3)
    phase = METHODS["pmi"].phases(TRAIN, config)[0]
    seen = views()

    def joint(head, features):
        return phase.loss(seen._replace(head=head, features=features), config)["joint"]

    to_head, to_features = jax.grad(joint, (0, 1))(seen.head, seen.features)
    np.testing.assert_array_equal(to_head.kernel, 0.0)
    assert np.abs(to_features).max() > 0


def test_apr_distils_all_images_and_classifies_real_ones_among_new_classes():
    """docs/methods/apr.md, eq. 3, at logits of (2, 0) for two old classes and any for new ones."""
    (phase,) = METHODS["apr"].phases(TRAIN, MethodConfig())
    eye = Head(jnp.eye(WIDTH, NUM_CLASSES))
    old = jnp.asarray([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    alike = jnp.asarray([2.0, 0.0, 5.0, 0.3, 0.7])
    real, replay = (jnp.tile(alike[None], (n, 1)) for n in (BATCH, REPLAY))
    seen = views()._replace(
        features=real, replay_features=replay, teacher_features=real,
        teacher_replay_features=replay, head=eye, teacher_head=eye, old_mask=old,
    )  # fmt: skip
    terms = phase.loss(seen, MethodConfig())
    np.testing.assert_allclose(terms["distillation"], 10 * 0.582203, rtol=1e-5)
    wanted = np.log(np.exp(0.3) + np.exp(0.7)) - 0.5  # half of the labels are 3, half are 4
    np.testing.assert_allclose(terms["local"], wanted, rtol=1e-5)

    def term(name):
        def value(features, replay_features):
            moved = seen._replace(features=features, replay_features=replay_features)
            return phase.loss(moved, MethodConfig())[name]

        return jax.grad(value, (0, 1))(real, replay)

    for gradient in term("distillation"):  # the teacher's own logits are its minimum
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    to_real, to_replay = term("local")
    np.testing.assert_array_equal(to_real[:, :3], 0.0)  # old classes take no part
    assert np.abs(to_real[:, 3:]).max() > 0
    np.testing.assert_array_equal(to_replay, 0.0)  # pushed images are of no class


def test_apr_learns_slowly_after_the_first_task():
    (phase,) = METHODS["apr"].phases(TRAIN, MethodConfig())
    np.testing.assert_allclose((phase.learning_rate, phase.weight_decay), (0.02, 2e-4))
    (phase,) = METHODS["apr"].phases(
        dataclasses.replace(TRAIN, later_learning_rate=0.3), MethodConfig()
    )
    assert phase.learning_rate == 0.3 and phase.push == METHODS["apr"].apr.replay


def test_stages_of_the_published_recipe():
    """docs/methods/pmi.md: head, last block, body, balanced tuning."""
    phases = METHODS["pmi"].phases(TRAIN, STAGEWISE)
    assert [p.name for p in phases] == ["head", "last_block", "body", "tuning"]
    assert [p.trainable for p in phases] == ["head", "last_block", "body", "head"]
    np.testing.assert_allclose([p.share for p in phases], [0.1, 0.1, 0.5, 0.3], rtol=1e-6)
    assert [p.new_columns_only for p in phases] == [True, True, True, False]
    assert all(p.replay and not p.joint_batch for p in phases)
    rates = [p.learning_rate for p in phases]
    wanted = [0.2, 0.1, STAGEWISE.body_learning_rate, STAGEWISE.tuning_learning_rate]
    assert rates == wanted
    assert [p.milestones for p in phases] == [(), (0.5, 0.75), (0.5, 0.75), ()]
    _, terms = terms_and_gradients(phases[0], STAGEWISE)
    assert "angles" not in terms, "a frozen body has no relation to keep"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("config", [MethodConfig(), STAGEWISE])
def test_phases_share_a_task_and_agree_with_the_method(name, config):
    method = METHODS[name]
    phases = method.phases(TRAIN, config)
    np.testing.assert_allclose(sum(p.share for p in phases), 1.0, rtol=1e-6)
    assert len({p.name for p in phases}) == len(phases)
    assert any(p.replay for p in phases) == (method.replay != "none")
    assert phases == method.phases(TRAIN, config), "equal programs compile once"


def test_the_first_task_is_the_same_for_every_method():
    (phase,) = learners.first_phases(TRAIN, MethodConfig())
    assert (phase.learning_rate, phase.share, phase.trainable) == (0.2, 1.0, "all")
    assert phase.schedule == "cosine" and not phase.replay
    assert phase.loss is methods.classification


def test_only_the_upper_bound_sees_all_data():
    assert [name for name, method in METHODS.items() if method.all_data] == ["joint"]
    assert [name for name, method in METHODS.items() if method.keeps_generator] == ["abd"]
    assert [name for name, method in METHODS.items() if method.keeps_records] == ["dfd", "vdfd"]
    assert METHODS["abd"].replay == METHODS["r_dfcil"].replay == "generator"
    assert METHODS["pmi"].replay == METHODS["deep_inversion"].replay == "inversion"
    pixels, pmi = METHODS["pixel_gaussian"], METHODS["pmi"]
    assert pixels.replay == "pixels" and pixels.phases is pmi.phases
    assert pixels.auxiliary == pmi.auxiliary
    assert [name for name, method in METHODS.items() if method.apr is not None] == ["apr"]
    assert METHODS["apr"].replay == "pushed" and METHODS["apr"].cosine_head
    assert [name for name, method in METHODS.items() if method.from_noise] == ["deep_inversion"]


def test_a_learner_that_pushes_images_needs_a_row():
    message = r"replay='pushed' with apr=None: .* apr_learner\(variant\)"
    with pytest.raises(ValueError, match=message):
        learners.learner(methods.lwf, replay="pushed")
