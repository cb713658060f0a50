import jax
import numpy as np
import pytest

from jaxpmi.continual import losses
from jaxpmi.network import Head

NUM_CLASSES = 6
OLD = np.asarray([1, 1, 1, 0, 0, 0], np.float32)
NEW = np.asarray([0, 0, 0, 1, 1, 0], np.float32)  # class 5 is not seen yet
SEEN = OLD + NEW
PMI_WEIGHTS = {"ce": 0.75, "hkd": 0.15, "rkd": 0.5, "ft": 1.5}
R_DFCIL_WEIGHTS = {"ce": 0.5, "hkd": 0.15, "rkd": 0.5}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def log_softmax(logits, mask):
    picked = np.asarray(logits, np.float64)[:, mask > 0]
    return picked - np.log(np.exp(picked).sum(1, keepdims=True))


@pytest.mark.parametrize("as_bool", [False, True])
@pytest.mark.parametrize(("mask", "labels"), [(NEW, [3, 4, 4]), (SEEN, [0, 4, 2])])
def test_cross_entropy_lets_only_masked_classes_compete(mask, labels, as_bool):
    logits, labels = normal(0, 3, NUM_CLASSES), np.asarray(labels)
    mask = mask > 0 if as_bool else mask
    position = np.cumsum(mask > 0)[labels] - 1
    want = -log_softmax(logits, mask)[np.arange(3), position].mean()
    loss = jax.jit(jax.value_and_grad(losses.masked_cross_entropy))
    value, grad = loss(logits, labels, mask)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_array_equal(grad[:, np.asarray(mask) == 0], 0.0)
    assert (np.abs(grad[:, np.asarray(mask) > 0]) > 0).all()


def test_class_weights_give_a_weighted_mean():
    logits, labels = normal(1, 4, NUM_CLASSES), np.asarray([0, 3, 4, 0])
    weights = np.asarray([2.0, 1.0, 1.0, 0.5, 7.0, 0.0], np.float32)
    each = np.asarray(losses.cross_entropies(logits, labels, SEEN))
    got = losses.masked_cross_entropy(logits, labels, SEEN, class_weights=weights)
    np.testing.assert_allclose(got, np.average(each, weights=weights[labels]), rtol=1e-5)


def test_a_label_outside_the_mask_is_noticed():
    loss = losses.masked_cross_entropy(normal(2, 1, NUM_CLASSES), np.asarray([0]), NEW)
    assert loss > 1e8


def test_head_cross_entropy_trains_the_head_only():
    head, features, labels = normal(3, 4, NUM_CLASSES), normal(4, 5, 4), np.asarray([0, 1, 3, 4, 2])
    loss = jax.jit(jax.value_and_grad(losses.head_cross_entropy, argnums=(0, 1)))
    value, (head_grad, features_grad) = loss(Head(head), features, labels, SEEN)
    head_grad = head_grad.kernel
    want = losses.masked_cross_entropy(features @ head, labels, SEEN)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_array_equal(features_grad, 0.0)
    assert np.abs(head_grad).max() > 0
    np.testing.assert_array_equal(head_grad[:, 5], 0.0)


def test_the_bias_of_a_head_is_trained_with_it():
    head = Head(normal(3, 4, NUM_CLASSES), normal(32, NUM_CLASSES))
    features, labels = normal(4, 5, 4), np.asarray([0, 1, 3, 4, 2])
    logits, ones = features @ head.kernel + head.bias, np.ones(NUM_CLASSES)
    wanted = jax.grad(losses.masked_cross_entropy)(logits, labels, SEEN).sum(0)
    for loss, rest in ((losses.head_cross_entropy, ()), (losses.abd_head_loss, (ones,))):
        value, grad = jax.value_and_grad(loss)(head, features, labels, SEEN, *rest)
        want = losses.masked_cross_entropy(logits, labels, SEEN)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        np.testing.assert_allclose(grad.bias, wanted, rtol=1e-4, atol=1e-6)


def test_head_tuning_weights_are_those_of_r_dfcil_too():
    counts = np.asarray([1.0, 4.0, 10.0], np.float32)
    weights = losses.inverse_count_weights(counts)
    np.testing.assert_allclose(weights, [10.0, 2.5, 1.0], rtol=1e-6)
    inverse = counts.sum() / counts
    np.testing.assert_allclose(weights, inverse / inverse.min(), rtol=1e-6)


def test_hard_distillation_averages_over_batch_and_old_classes():
    logits, teacher = normal(5, 4, NUM_CLASSES), normal(6, 4, NUM_CLASSES)
    loss = jax.jit(jax.value_and_grad(losses.hard_distillation, argnums=(0, 1)))
    value, (grad, teacher_grad) = loss(logits, teacher, OLD)
    np.testing.assert_allclose(value, np.abs(logits - teacher)[:, :3].mean(), rtol=1e-5)
    np.testing.assert_allclose(grad[:, :3], np.sign(logits - teacher)[:, :3] / 12, rtol=1e-5)
    np.testing.assert_array_equal(grad[:, 3:], 0.0)
    np.testing.assert_array_equal(teacher_grad, 0.0)
    live = jax.value_and_grad(
        lambda a, b: losses.hard_distillation(a, b, OLD, detach=False), argnums=(0, 1)
    )
    same, (grad, teacher_grad) = live(logits, teacher)
    np.testing.assert_array_equal(same, value)
    np.testing.assert_array_equal(teacher_grad, -grad)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_distillation_is_the_cross_entropy_of_tempered_softmaxes(temperature):
    logits, teacher = normal(7, 4, NUM_CLASSES), normal(8, 4, NUM_CLASSES)
    target = np.exp(log_softmax(teacher / temperature, OLD))
    want = -(target * log_softmax(logits / temperature, OLD)).sum(1).mean()
    loss = jax.jit(
        jax.value_and_grad(
            lambda *args: losses.soft_distillation(*args, OLD, temperature=temperature),
            argnums=(0, 1),
        )
    )
    value, (grad, teacher_grad) = loss(logits, teacher)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_array_equal(grad[:, 3:], 0.0)
    np.testing.assert_array_equal(teacher_grad, 0.0)
    _, (at_teacher, _) = loss(teacher, teacher)
    np.testing.assert_allclose(at_teacher, 0.0, atol=1e-7)
    assert np.abs(grad).max() > 1e-2


def test_soft_distillation_has_no_temperature_squared():
    """For small logits T^2 would cancel the temperature; without it the gradient falls 4-fold."""
    logits, teacher = 1e-2 * normal(9, 4, NUM_CLASSES), 1e-2 * normal(10, 4, NUM_CLASSES)

    def gradient(temperature):
        loss = lambda z: losses.soft_distillation(z, teacher, OLD, temperature=temperature)  # noqa: E731
        return np.abs(jax.grad(loss)(logits)).sum()

    np.testing.assert_allclose(gradient(1.0) / gradient(2.0), 4.0, rtol=0.02)


def test_soft_distillation_on_seen_classes_pads_the_target_with_zeros():
    logits, teacher = normal(11, 4, NUM_CLASSES), normal(12, 4, NUM_CLASSES)
    target = np.exp(log_softmax(teacher / 2.0, OLD))
    want = -(target * log_softmax(logits / 2.0, SEEN)[:, :3]).sum(1).mean()
    got = losses.soft_distillation(logits, teacher, OLD, class_mask=SEEN)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_sigmoid_distillation_against_its_formula_and_minimum():
    logits, teacher = normal(13, 3, NUM_CLASSES), normal(14, 3, NUM_CLASSES)
    labels = np.asarray([3, 4, 3])
    target = np.concatenate([1 / (1 + np.exp(-teacher[:, :3])), np.eye(6)[labels][:, 3:5]], axis=1)
    probability = 1 / (1 + np.exp(-logits[:, :5].astype(np.float64)))
    entropy = target * np.log(probability) + (1 - target) * np.log(1 - probability)
    loss = jax.jit(jax.value_and_grad(losses.sigmoid_distillation))
    value, grad = loss(logits, labels, teacher, NEW, OLD)
    np.testing.assert_allclose(value, -entropy.sum(1).mean(), rtol=1e-5)
    np.testing.assert_array_equal(grad[:, 5], 0.0)
    assert (np.abs(grad[:, :3]) > 1e-4).all()
    mixed = np.where(OLD[None] > 0, teacher, logits)
    _, grad = loss(mixed, labels, teacher, NEW, OLD)
    np.testing.assert_allclose(grad[:, :3], 0.0, atol=1e-7)


def test_the_first_task_has_nothing_to_distil():
    logits, teacher, none = normal(15, 3, NUM_CLASSES), normal(16, 3, NUM_CLASSES), 0 * OLD
    for loss in (losses.hard_distillation, losses.soft_distillation):
        value, grad = jax.value_and_grad(loss)(logits, teacher, none)
        assert value == 0.0
        np.testing.assert_array_equal(grad, 0.0)
    got = losses.sigmoid_distillation(logits, np.asarray([3, 4, 3]), teacher, NEW, none)
    plain = np.log1p(np.exp(logits)) - np.eye(6)[[3, 4, 3]] * logits
    np.testing.assert_allclose(got, plain[:, 3:5].sum(1).mean(), rtol=1e-5)


def brute_force_angles(points):
    points, n = np.asarray(points, np.float64), len(points)
    angles = np.zeros((n, n, n))
    for i in range(n):
        for j in range(n):
            for k in range(n):
                a, b = points[j] - points[i], points[k] - points[i]
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                angles[i, j, k] = a @ b / norm if norm > 0 else 0.0
    return angles


def identity_projection(dim):
    return {"weight": np.eye(dim, dtype=np.float32), "bias": np.zeros(dim, np.float32)}


def test_angles_and_their_distance_equal_the_loop_over_triples():
    projections = losses.init_angle_projections(jax.random.key(0), 4, 3, width=5)
    features, teacher = normal(17, 6, 4) + 50.0, normal(18, 6, 3)
    expected = []
    for name, x in (("student", features), ("teacher", teacher)):
        weight, bias = projections[name]["weight"], projections[name]["bias"]
        expected.append(brute_force_angles(x @ np.asarray(weight) + np.asarray(bias)))
        got = jax.jit(losses.projected_angles)(projections[name], x)
        np.testing.assert_allclose(got, expected[-1], atol=1e-4)
    got = jax.jit(losses.angle_distillation)(projections, features, teacher)
    np.testing.assert_allclose(got, np.abs(expected[0] - expected[1]).mean(), atol=1e-5)


def test_angle_distillation_ignores_translation_rotation_and_scale():
    projections = {"student": identity_projection(4), "teacher": identity_projection(4)}
    features = normal(19, 8, 4)
    rotation = np.linalg.qr(normal(20, 4, 4))[0]
    loss = jax.jit(losses.angle_distillation)
    moved = 0.3 * features @ rotation + np.asarray([[5.0, -2.0, 0.0, 1.0]], np.float32)
    np.testing.assert_allclose(loss(projections, moved, features), 0.0, atol=1e-5)
    stretched = features * np.asarray([[3.0, 1.0, 1.0, 1.0]], np.float32)
    assert loss(projections, stretched, features) > 0.05


def test_angle_distillation_trains_both_projections_but_not_the_teacher():
    projections = losses.init_angle_projections(jax.random.key(1), 4, 3, width=5)
    grads = jax.jit(jax.grad(losses.angle_distillation, argnums=(0, 1, 2)))
    for_projections, for_features, for_teacher = grads(
        projections, normal(21, 5, 4), normal(22, 5, 3)
    )
    assert np.abs(for_projections["student"]["weight"]).max() > 0
    assert np.abs(for_projections["teacher"]["weight"]).max() > 0
    assert np.abs(for_features).max() > 0
    np.testing.assert_array_equal(for_teacher, 0.0)


@pytest.mark.parametrize("scale", [1.0, 0.0])  # one pair of equal points; all equal
def test_angle_distillation_has_a_finite_gradient_at_equal_points(scale):
    projections = {"student": identity_projection(3), "teacher": identity_projection(3)}
    features = scale * normal(23, 4, 3)
    features[1] = features[0]
    grad = jax.jit(jax.grad(losses.angle_distillation, argnums=1))
    got = grad(projections, features, normal(24, 4, 3))
    assert np.isfinite(got).all()
    assert np.abs(got).max() < 10.0


@pytest.mark.parametrize(
    ("num_new", "num_old", "scales", "factors", "product"),
    [
        (10, 10, (2.585, 1.0), (1.040, 0.388, 1.292, 2.080), 2.689),
        (10, 90, (2.585, 3.0), (0.347, 1.163, 3.877, 0.693), 2.689),
        (20, 80, (3.459, 2.0), (0.483, 1.038, 3.459, 0.967), 3.345),
        (5, 95, (1.807, 4.359), (0.267, 1.182, 3.939, 0.535), 2.106),
    ],
)
def test_pmi_factor_table(num_new, num_old, scales, factors, product):
    np.testing.assert_allclose(losses.adaptive_scales(num_new, num_old), scales, atol=6e-4)
    got = losses.distillation_factors(num_new, num_old, **PMI_WEIGHTS)
    np.testing.assert_allclose(got, factors, atol=6e-4)
    np.testing.assert_allclose(got.rkd * got.ft, product, atol=1e-3)


@pytest.mark.parametrize(
    ("num_new", "num_old", "factors"),
    [
        (10, 10, (0.6934, 0.3877, 1.2925)),
        (10, 90, (0.2311, 1.1632, 3.8774)),
        (20, 80, (0.3223, 1.0378, 3.4594)),
        (5, 95, (0.1782, 1.1817, 3.9390)),
    ],
)
def test_r_dfcil_factor_table(num_new, num_old, factors):
    got = losses.distillation_factors(num_new, num_old, **R_DFCIL_WEIGHTS)
    np.testing.assert_allclose(got[:3], factors, atol=6e-5)
    assert got.ft == 0.0


def test_factors_of_traced_counts_and_of_the_first_task():
    factors = jax.jit(
        lambda new, old: losses.distillation_factors(new.sum(), old.sum(), **PMI_WEIGHTS)
    )
    want = losses.distillation_factors(2, 3, **PMI_WEIGHTS)
    np.testing.assert_allclose(factors(NEW, OLD), want, rtol=1e-6)
    np.testing.assert_array_equal(factors(NEW, 0 * OLD), [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(("combine", "want"), [("sum", 2 + 6 + 12 + 20), ("product", 2 + 6 + 240)])
def test_combine_terms(combine, want):
    terms = losses.DistillationFactors(ce=2.0, hkd=3.0, rkd=4.0, ft=5.0)
    factors = losses.DistillationFactors(ce=1.0, hkd=2.0, rkd=3.0, ft=4.0)
    assert losses.combine_terms(terms, factors, combine=combine) == want


def test_combine_terms_names_its_choices():
    terms = losses.DistillationFactors(1.0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="use 'sum' or 'product'"):
        losses.combine_terms(terms, terms, combine="mean")


def test_abd_class_weights():
    position = np.arange(120)
    new, old = (position >= 90) & (position < 100), position < 90
    weights = losses.abd_class_weights(new, old)
    np.testing.assert_allclose(weights, 0.9 * old + 0.1 * new, rtol=1e-6)
    np.testing.assert_array_equal(losses.abd_class_weights(new, 0 * old), new)


def test_abd_local_loss_divides_by_the_batch_and_spares_old_heads():
    head, features, labels = normal(25, 4, NUM_CLASSES), normal(26, 3, 4), np.asarray([3, 4, 4])
    weights = losses.abd_class_weights(NEW, OLD)

    def loss(head, features):
        return losses.abd_local_loss(features @ head, labels, NEW, weights)

    value, (head_grad, features_grad) = jax.value_and_grad(loss, argnums=(0, 1))(head, features)
    each = -log_softmax(features @ head, NEW)[np.arange(3), labels - 3]
    np.testing.assert_allclose(value, 0.4 * each.mean(), rtol=1e-5)
    np.testing.assert_array_equal(head_grad[:, NEW == 0], 0.0)
    assert (np.abs(head_grad[:, NEW > 0]) > 0).all() and (np.abs(features_grad) > 0).any()


def test_abd_head_loss_trains_the_head_only():
    head, features, labels = normal(27, 4, NUM_CLASSES), normal(28, 3, 4), np.asarray([0, 2, 4])
    weights = losses.abd_class_weights(NEW, OLD)
    loss = jax.value_and_grad(losses.abd_head_loss, argnums=(0, 1))
    value, (head_grad, features_grad) = loss(Head(head), features, labels, SEEN, weights)
    head_grad = head_grad.kernel
    each = -log_softmax(features @ head, SEEN)[np.arange(3), labels]
    np.testing.assert_allclose(value, (each * [0.6, 0.6, 0.4]).mean(), rtol=1e-5)
    np.testing.assert_array_equal(features_grad, 0.0)
    assert (np.abs(head_grad[:, SEEN > 0]) > 0).all()
    np.testing.assert_array_equal(head_grad[:, 5], 0.0)
    _, (released, _) = loss(Head(head), features, labels, np.ones(NUM_CLASSES), weights)
    assert (np.abs(released.kernel[:, 5]) > 0).all()


def test_abd_feature_loss_sees_the_change_through_the_old_head():
    features, teacher, head = normal(29, 3, 4), normal(30, 3, 4), normal(31, 4, NUM_CLASSES)
    loss = jax.value_and_grad(losses.abd_feature_loss, argnums=(0, 1, 2))
    value, (grad, teacher_grad, head_grad) = loss(features, teacher, Head(head), OLD)
    change = (features - teacher) @ head[:, :3]
    np.testing.assert_allclose(value, np.square(change).sum(1).mean() / 3, rtol=1e-5)
    assert np.abs(grad).max() > 0
    np.testing.assert_array_equal(teacher_grad, 0.0)
    np.testing.assert_array_equal(head_grad.kernel, 0.0)
    assert losses.abd_feature_loss(teacher, teacher, Head(head), OLD) == 0.0
    null = np.linalg.svd(head[:, :3].T)[2][-1]  # four dimensions, three old classes
    moved = losses.abd_feature_loss(features + 5.0 * null[None], teacher, Head(head), OLD)
    np.testing.assert_allclose(moved, value, rtol=1e-4)
