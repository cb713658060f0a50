import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.blocks.blockwise import channel_moments
from jaxpmi.inversion import objectives
from jaxpmi.inversion import priors
from jaxpmi.inversion import views
from jaxpmi.types import Moments

KL_DIRECTIONS = [objectives.moment_kl, objectives.reverse_moment_kl]


def batch(seed=0, channels=5):
    noise = np.random.default_rng(seed).normal(size=(4, 6, 6, channels))
    return (np.linspace(0.5, 3.0, channels) * noise + np.arange(channels)).astype(np.float32)


def moments(x):
    return Moments(x.mean((0, 1, 2)), x.var((0, 1, 2)))


def gaussian_kl(p, q):
    """KL(N(p) || N(q)) per channel, in float64."""
    (m, v), (mu, s) = (tuple(np.asarray(a, np.float64) for a in g) for g in (p, q))
    return 0.5 * (np.log(s / v) - 1.0 + (v + (m - mu) ** 2) / s)


@pytest.mark.parametrize("kl", KL_DIRECTIONS)
def test_moment_kl_vanishes_with_zero_gradient_at_the_stored_moments(kl):
    """Channels differ, so comparing every channel with every other (a C x C table) is not 0."""
    x = batch()
    stored = moments(x)
    value, grad = jax.jit(jax.value_and_grad(lambda x: kl(channel_moments(x), stored)))(x)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(grad, 0.0, atol=1e-7)
    table = gaussian_kl(
        (stored.mean[None], stored.var[None]), (stored.mean[:, None], stored.var[:, None])
    )
    assert table.mean() > 1.0


@pytest.mark.parametrize("kl", KL_DIRECTIONS)
@pytest.mark.parametrize("change", ["mean", "var"])
def test_moment_kl_is_positive_elsewhere_and_its_gradient_leads_back(kl, change):
    x = batch()
    stored = moments(x)
    stored = stored._replace(**{change: getattr(stored, change) * 1.3 + 0.1})
    value_and_grad = jax.jit(jax.value_and_grad(lambda x: kl(channel_moments(x), stored)))
    value, grad = value_and_grad(x)
    assert value > 1e-3
    assert value_and_grad(x - 5.0 * grad)[0] < value


def test_moment_kl_is_batch_from_stored_and_its_reverse_the_other_way():
    shown, stored = moments(batch()), Moments(np.zeros(5), np.linspace(0.5, 2.0, 5))
    forward, backward = gaussian_kl(shown, stored).mean(), gaussian_kl(stored, shown).mean()
    assert abs(forward - backward) > 0.1
    np.testing.assert_allclose(objectives.moment_kl(shown, stored), forward, rtol=1e-5)
    np.testing.assert_allclose(objectives.reverse_moment_kl(shown, stored), backward, rtol=1e-5)


def test_reverse_moment_kl_number():
    shown, stored = Moments(jnp.full(1, 0.5), jnp.full(1, 2.0)), Moments(jnp.zeros(1), jnp.ones(1))
    np.testing.assert_allclose(objectives.reverse_moment_kl(shown, stored), 0.1590736, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kl", KL_DIRECTIONS)
def test_moment_kl_is_never_negative(kl, seed):
    draws = np.random.default_rng(seed).uniform(0.1, 3.0, (4, 7))
    assert kl(Moments(*draws[:2]), Moments(*draws[2:])) > 0.0


def test_unused_channels_do_not_explode():
    shown, stored = Moments(jnp.zeros(1), jnp.ones(1)), Moments(jnp.zeros(1), jnp.zeros(1))
    np.testing.assert_allclose(
        objectives.moment_kl(shown, stored), 0.5 * (np.log(1e-4) - 1.0 + 1e4), rtol=1e-5
    )


def test_statistics_losses_sum_or_average_over_layers():
    shown = {f"bn{i}": moments(batch(i, channels=i + 2)) for i in range(3)}
    stored = {f"bn{i}": Moments(np.ones(i + 2), np.ones(i + 2)) for i in range(3)}
    forward = [gaussian_kl(shown[k], stored[k]).mean() for k in shown]
    backward = [gaussian_kl(stored[k], shown[k]).mean() for k in shown]
    total = jax.jit(objectives.statistics_loss)(shown, stored)
    np.testing.assert_allclose(total, sum(forward), rtol=1e-5)
    average = jax.jit(objectives.reverse_statistics_loss)(shown, stored)
    np.testing.assert_allclose(average, np.mean(backward), rtol=1e-5)


def test_feature_match_is_the_mean_over_all_elements():
    output, target = jnp.full((2, 3), 3.0), jnp.ones((2, 3)).at[0, 0].set(3.0)
    np.testing.assert_allclose(objectives.feature_match(output, target), 4.0 * 5 / 6, rtol=1e-6)


def test_class_cross_entropy_of_equal_and_certain_logits():
    labels = jnp.asarray([1, 3])
    np.testing.assert_allclose(
        objectives.class_cross_entropy(jnp.ones((2, 4)), labels), np.log(4.0), rtol=1e-6
    )
    certain = 50.0 * jax.nn.one_hot(labels, 4)
    np.testing.assert_allclose(objectives.class_cross_entropy(certain, labels), 0.0, atol=1e-6)
    assert objectives.class_cross_entropy(certain, labels[::-1]) > 49.0


def test_class_imbalance_is_0_for_an_even_batch_and_1_for_one_class():
    mask = np.asarray([1.0, 1.0, 1.0, 0.0])
    class_imbalance = jax.jit(jax.value_and_grad(objectives.class_imbalance))
    even, one = 100.0 * np.eye(4)[:3], 100.0 * np.eye(4)[[0, 0, 0]]
    even[:, 3] = 500.0  # the last class is not in the mask
    np.testing.assert_allclose(class_imbalance(even, mask)[0], 0.0, atol=1e-6)
    value, grad = class_imbalance(one, mask)
    np.testing.assert_allclose(value, 1.0, atol=1e-6)
    assert bool(jnp.isfinite(grad).all())
    np.testing.assert_allclose(class_imbalance(0.0 * one, mask)[0], 0.0, atol=1e-6)


def test_self_cross_entropy_compares_with_the_best_masked_class():
    logits = jnp.asarray([[2.0, 0.0, 9.0]])
    mask = jnp.asarray([True, True, False])
    want = np.log(1.0 + np.exp(-2.0 / 4.0))
    got = objectives.self_cross_entropy(logits, mask, temperature=4.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_class_imbalance_is_the_sum_of_p_log_p_up_to_its_scale():
    """The balance term of DAFL: -ln K for equal shares, 0 for one class."""
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    uniform, one_hot = np.zeros((6, 4), np.float32), 50.0 * np.eye(4, dtype=np.float32)[[2] * 6]
    for batch, known in ((logits, None), (uniform, -np.log(4.0)), (one_hot, 0.0)):
        p = np.exp(batch) / np.exp(batch).sum(1, keepdims=True)
        p = p.mean(0)
        want = (p * np.log(np.maximum(p, 1e-30))).sum() if known is None else known
        got = np.log(4.0) * (objectives.class_imbalance(batch, np.ones(4)) - 1.0)
        np.testing.assert_allclose(got, want, atol=1e-6)


def divergences(teacher, student):
    """KL(softmax(teacher) || softmax(student)) per row, in float64."""
    p, q = (np.exp(np.asarray(x, np.float64)) for x in (teacher, student))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return (p * np.log(p / q)).sum(1)


def two_logits(number=6):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(number, 5)).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_kl_against_numpy(temperature):
    student, teacher = two_logits()
    got = objectives.distillation_kl(student, teacher, temperature)
    want = temperature**2 * divergences(teacher / temperature, student / temperature).mean()
    np.testing.assert_allclose(got, want, rtol=1e-3)
    np.testing.assert_allclose(
        objectives.distillation_kl(teacher, teacher, temperature), 0.0, atol=1e-4
    )


def test_the_gradient_of_distillation_is_about_as_large_at_any_temperature():
    student, teacher = two_logits()
    norms = [
        np.linalg.norm(jax.grad(objectives.distillation_kl)(student, teacher, temperature))
        for temperature in (5.0, 10.0, 20.0, 50.0)
    ]
    assert max(norms) < 1.3 * min(norms)


def test_agreed_divergence_counts_images_on_which_both_agree():
    teacher, student = two_logits(40)
    agree = teacher.argmax(1) == student.argmax(1)
    assert 3 < agree.sum() < 37
    want = divergences(teacher, student)
    got = objectives.agreed_divergence(teacher, student)
    np.testing.assert_allclose(got, (want * agree).mean(), rtol=1e-5)
    # All agree: the mean; none agrees: 0; the same network: 0.
    got = objectives.agreed_divergence(teacher[agree], student[agree])
    np.testing.assert_allclose(got, want[agree].mean(), rtol=1e-5)
    assert objectives.agreed_divergence(teacher[~agree], student[~agree]) == 0.0
    np.testing.assert_allclose(objectives.agreed_divergence(teacher, teacher), 0.0, atol=1e-6)


def test_agreement_itself_has_no_gradient():
    teacher, student = two_logits(40)
    agree = teacher.argmax(1) == student.argmax(1)
    for argument in (0, 1):
        grad = jax.grad(objectives.agreed_divergence, argnums=argument)(teacher, student)
        want = jax.grad(
            lambda *logits: (objectives.prediction_divergence(*logits) * agree).mean(),
            argnums=argument,
        )(teacher, student)
        np.testing.assert_allclose(grad, want, atol=1e-6)
        assert (np.abs(grad[agree]).max(1) > 0).all() and not grad[~agree].any()


def test_total_variation_of_ramps():
    ramp = np.broadcast_to(np.arange(6.0, dtype=np.float32)[None, :, None, None], (2, 6, 5, 3))
    # Down and both diagonals change by 1, right by 0.
    np.testing.assert_allclose(priors.total_variation(ramp), 3.0, rtol=1e-6)
    np.testing.assert_allclose(priors.total_variation(ramp.swapaxes(1, 2)), 3.0, rtol=1e-6)
    both = ramp[:, :5] + ramp[:, :5].swapaxes(1, 2)
    # Right and down 1, the main diagonal 2, the other 0.
    np.testing.assert_allclose(priors.total_variation(both), 4.0, rtol=1e-6)
    assert priors.total_variation(jnp.full((1, 4, 4, 1), 7.0)) == 0.0


def test_the_l2_total_variation_against_numpy():
    """docs/methods/clip.md, eq. 5: one direction, image and channel at a time."""
    x = np.random.default_rng(0).standard_normal((3, 5, 4, 2)).astype(np.float32)
    want = 0.0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        norms = []
        for image in x:
            for c in range(2):
                differences = [
                    image[i + dy, j + dx, c] - image[i, j, c]
                    for i in range(5 - dy)
                    for j in range(4)
                    if 0 <= j + dx < 4
                ]
                norms.append(np.linalg.norm(differences))
        want += np.mean(norms)
    np.testing.assert_allclose(priors.total_variation(x, norm="l2"), want, rtol=1e-5)


def test_the_l2_total_variation_of_an_even_image_has_a_finite_gradient():
    even = jnp.full((1, 4, 4, 1), 7.0).at[0, 0, 0, 0].set(7.0)
    value, grad = jax.value_and_grad(lambda x: priors.total_variation(x, norm="l2"))(even)
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_jitter_rolls_the_whole_batch_within_its_range():
    image = np.arange(64.0, dtype=np.float32).reshape(1, 8, 8, 1)
    images = np.concatenate([image, image + 100.0])
    rolls = {
        (dy, dx): np.roll(image, (dy, dx), (1, 2)) for dy in range(-1, 2) for dx in range(-1, 2)
    }
    jitter, seen = jax.jit(lambda images, key: views.jitter(images, key, 1)), set()
    for seed in range(40):
        got = np.asarray(jitter(images, jax.random.key(seed)))
        np.testing.assert_array_equal(got[1] - got[0], 100.0)
        (shift,) = [k for k, v in rolls.items() if np.array_equal(v[0], got[0])]
        seen.add(shift)
    assert len(seen) == 9


def test_blur_kernel():
    impulse = jnp.zeros((1, 9, 9, 2)).at[0, 4, 4, 0].set(1.0)
    kernel = priors.blur(impulse)
    np.testing.assert_allclose(kernel[..., 0].sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(kernel[0, 4, 4, 0], 0.0921980, atol=1e-7)
    row = np.asarray(kernel[0, 4, 2:7, 0] / kernel[0, 4, 4, 0]) * 0.3036
    np.testing.assert_allclose(row, [0.1117, 0.2365, 0.3036, 0.2365, 0.1117], atol=1e-4)
    np.testing.assert_allclose(kernel[..., 0], kernel[..., 0].swapaxes(1, 2), atol=1e-7)
    np.testing.assert_array_equal(kernel[..., 1], 0.0)  # channels do not mix


def test_blur_keeps_constants_up_to_the_border_and_pulls_noise_together():
    blur_and_distance = jax.jit(lambda x: (priors.blur(x), priors.blur_distance(x)))
    constant = np.full((4, 5, 7, 1), 2.5, np.float32)
    blurred, distance = blur_and_distance(constant)
    np.testing.assert_allclose(blurred, constant, rtol=1e-6)
    np.testing.assert_allclose(distance, 0.0, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=constant.shape).astype(np.float32)
    blurred, distance = blur_and_distance(noise)
    assert blurred.std() < 0.5 * noise.std()
    np.testing.assert_allclose(distance, np.square(noise - blurred).mean(), rtol=1e-5)


def test_quantiles_of_a_histogram_by_hand():
    images = np.asarray([0, 0, 0, 51, 255, 255, 102, 51], np.uint8).reshape(2, 2, 2, 1)
    histogram = priors.pixel_histogram(images)
    assert histogram.shape == (256, 1) and histogram[[0, 51, 102, 255], 0].tolist() == [3, 2, 1, 2]
    levels = (jnp.arange(8) + 0.5) / 8
    want = [0, 0, 0, 0.2, 0.2, 0.4, 1, 1]
    np.testing.assert_allclose(priors.quantiles(histogram, levels)[:, 0], want, atol=1e-6)


def test_histogram_distance_is_zero_exactly_at_the_histogram():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 5, 5, 1), np.uint8)
    histogram = priors.pixel_histogram(images)
    pixels = rng.permutation(images.reshape(-1, 1) / np.float32(255))
    np.testing.assert_allclose(priors.histogram_distance(pixels, histogram), 0.0, atol=1e-10)
    # Shifting all values by d costs d squared: the squared Wasserstein distance.
    shifted = priors.histogram_distance(pixels + np.float32(0.25), histogram)
    np.testing.assert_allclose(shifted, 0.0625, rtol=1e-5)
    grad = jax.grad(priors.histogram_distance)(jnp.asarray(pixels) + 0.25, histogram)
    np.testing.assert_allclose(grad, 2 * 0.25 / pixels.size, rtol=1e-4)


def test_power_spectrum_and_its_distance_by_hand():
    x = batch(channels=2)
    spectrum = priors.power_spectrum(jnp.asarray(x))
    assert spectrum.shape == (4, 6, 4, 4)
    np.testing.assert_allclose(spectrum[:, 0, 0, :2], x.sum((1, 2)) ** 2, rtol=1e-4)  # no wave
    reference = spectrum.mean(0)
    shifted = jnp.roll(jnp.asarray(x), (2, 1), axis=(1, 2))  # where things are does not matter
    np.testing.assert_allclose(priors.spectrum_distance(shifted, reference), 0.0, atol=1e-9)
    np.testing.assert_allclose(priors.spectrum_distance(2.0 * x, reference), 1.0, rtol=1e-4)
    np.testing.assert_allclose(priors.spectrum_distance(0.0 * x, reference), 1.0, rtol=1e-2)
    grad = jax.grad(priors.spectrum_distance)(jnp.zeros_like(x), reference)
    assert np.isfinite(grad).all()


def test_match_histogram_is_monotone_and_gives_the_real_values():
    rng = np.random.default_rng(1)
    real = (rng.random((6, 8, 8, 2)) ** 3 * 255).astype(np.uint8)
    images = rng.normal(0.4, 0.2, (6, 8, 8, 2)).astype(np.float32)
    got = jax.jit(priors.match_histogram)(images, priors.pixel_histogram(real))
    for c in range(2):
        np.testing.assert_allclose(
            np.sort(np.asarray(got)[..., c].ravel()), np.sort(real[..., c].ravel()) / 255, atol=1e-6
        )
        order = np.argsort(images[..., c].ravel())
        assert (np.diff(np.asarray(got)[..., c].ravel()[order]) >= 0).all()
    # Equal pixels stay equal, whatever the histogram.
    flat = priors.match_histogram(jnp.zeros((2, 4, 4, 2)), priors.pixel_histogram(real))
    assert np.unique(np.asarray(flat)[..., 0]).size == 1
