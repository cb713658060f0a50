import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.blocks.cost import count_parameters
from jaxpmi.models import clip

TINY = clip.clip(
    image_size=16, patch_size=8, width=16, depth=2, num_heads=2, features=6, vocabulary=20,
    context=7, text_width=8, text_depth=2, text_num_heads=2,
)  # fmt: skip
SIZES = {"clip_vit_b32": 151_277_313, "clip_vit_b16": 149_620_737, "clip_vit_l14": 427_616_513}


def tiny():
    return clip.init_clip(TINY, jax.random.key(0))


@pytest.mark.parametrize("name", clip.CLIP_MODELS)
def test_the_published_sizes_have_the_published_numbers_of_parameters(name):
    model = clip.CLIP_MODELS[name]()
    shapes = jax.eval_shape(lambda key: clip.init_clip(model, key), jax.random.key(0))
    assert count_parameters((shapes.image.params, shapes.text, shapes.logit_scale)) == SIZES[name]


def test_the_tiny_one_is_as_small_as_it_says():
    model = clip.clip_tiny(vocabulary=24, context=12)
    shapes = jax.eval_shape(lambda key: clip.init_clip(model, key), jax.random.key(0))
    count = count_parameters((shapes.image.params, shapes.text, shapes.logit_scale))
    assert 83_500 < count < 84_500


def test_text_is_read_at_its_first_end_token_and_what_follows_does_not_matter():
    end = TINY.sizes.end_token
    assert end == 19
    texts = [[1, 5, end, 0, 0, 0, 0], [1, 5, end, 7, end, 3, 2], [1, 5, end]]
    short, padded, cut = (clip.encode_text(TINY, tiny(), jnp.asarray([text])) for text in texts)
    np.testing.assert_allclose(short, padded, atol=1e-6)
    np.testing.assert_allclose(short, cut, atol=1e-6)
    other = clip.encode_text(TINY, tiny(), jnp.asarray([[1, 6, end]]))
    assert float(jnp.abs(other - cut).max()) > 1e-3


def test_logits_are_scaled_cosines():
    variables = tiny()
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((3, 16, 16, 3), np.float32))
    seen = clip.encode_images(TINY, variables, images)
    said = clip.encode_text(TINY, variables, jnp.asarray([[1, 2, 19], [1, 3, 19]]))
    assert seen.shape == (3, 6) and said.shape == (2, 6)
    logits = clip.similarity_logits(seen, said, variables.logit_scale)
    a, b = np.asarray(seen), np.asarray(said)
    cosines = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(logits, cosines / 0.07, rtol=1e-4)
    scaled = clip.similarity_logits(3 * seen, 0.5 * said, variables.logit_scale)
    np.testing.assert_allclose(scaled, logits, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (2, 8)])
def test_texts_longer_than_the_context_are_errors(shape):
    with pytest.raises(ValueError, match=r"expected \(B, T\) with T at most 7"):
        clip.encode_text(TINY, tiny(), jnp.zeros(shape, jnp.int32))
