import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.models import clip
from jaxpmi.models.tokenizer import check_class_names
from jaxpmi.models.tokenizer import read_tokenizer
from jaxpmi.models.tokenizer import word_tokenizer

# A byte-level BPE as CLIP's, with few merges: 523 starts a text and 524 ends it.
FILE = Path(__file__).parents[1] / "golden" / "open_clip_gelu" / "tokenizer.json"


def edited(tmp_path, **fields):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(FILE.read_text()), **fields}))
    return path


def error_of(error, function, *args):
    with pytest.raises(error) as caught:
        function(*args)
    return str(caught.value)


# From a file.


def test_a_text_stands_between_start_and_end_and_is_padded_to_the_context():
    tokenizer = read_tokenizer(FILE, context=9)
    assert (tokenizer.context, tokenizer.vocabulary, tokenizer.end_token) == (9, 525, 524)
    tokens = tokenizer.encode(["a photo of a cat", ""])
    assert tokens.dtype == np.int32
    a, photo, of, cat = 320, 515, 516, 520  # 'a' alone is a byte at the end of a word
    want = [[523, a, photo, of, a, cat, 524, 0, 0], [523, 524] + [0] * 7]
    np.testing.assert_array_equal(tokens, want)
    assert tokenizer.encode([]).shape == (0, 9)


def test_upper_case_and_spaces_do_not_count():
    tokenizer = read_tokenizer(FILE, context=12)
    plain, odd = tokenizer.encode(["a photo of a dog.", "  A\tPHOTO of  a Dog. \n"])
    np.testing.assert_array_equal(plain, odd)


def test_a_text_may_fill_the_context_and_no_more():
    tokenizer = read_tokenizer(FILE, context=7)
    assert tokenizer.encode(["a photo of a cat"])[0, -1] == 524
    assert error_of(ValueError, tokenizer.encode, ["a dog", "a photo of the cat dog"]) == (
        "'a photo of the cat dog' has 8 tokens, start and end included, but the model reads at "
        "most 7; shorten it."
    )


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path):
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 16},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    tokenizer = read_tokenizer(edited(tmp_path, truncation=truncation, padding=padding), 10)
    want = read_tokenizer(FILE, 10).encode(["a photo of a cat"])
    np.testing.assert_array_equal(tokenizer.encode(["a photo of a cat"]), want)


def test_an_end_token_inside_a_text_is_an_error():
    """There the model would stop reading."""
    tokenizer = read_tokenizer(FILE, context=9)
    assert error_of(ValueError, tokenizer.encode, ["a <|endoftext|> cat"]) == (
        "the tokenizer does not know '<|endoftext|>' in 'a <|endoftext|> cat'; use other words, "
        "or a tokenizer made with these."
    )


def test_one_text_instead_of_a_list_is_an_error():
    tokenizer = read_tokenizer(FILE, context=9)
    message = "got the text 'a cat', expected a list of texts."
    assert error_of(TypeError, tokenizer.encode, "a cat") == message


def test_a_missing_file_is_an_error(tmp_path):
    path = tmp_path / "tokenizer.json"
    assert error_of(FileNotFoundError, read_tokenizer, path, 9) == (
        f"{path} does not exist; put there the tokenizer.json that the model was published with "
        "(that of openai/clip-vit-base-patch16 serves all weights of OpenAI)."
    )


@pytest.mark.parametrize("content", ["", "{}", '{"vocab": {"a": 0}}', "\x80\x04pickle"])
def test_a_file_of_another_format_is_an_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    message = error_of(ValueError, read_tokenizer, path, 9)
    pattern = (
        f"{path} is not a file of the library tokenizers (.+); put there the tokenizer.json that "
        "the model was published with."
    )
    assert re.fullmatch(re.escape(pattern).replace(re.escape("(.+)"), r"\(.+\)"), message)


def test_a_tokenizer_without_start_and_end_is_an_error(tmp_path):
    path = edited(tmp_path, post_processor=None)
    assert error_of(ValueError, read_tokenizer, path, 9) == (
        f"{path} turns an empty text into the tokens [], but a start and an end token are "
        "expected, as CLIP has them; put there the tokenizer.json that the model was published "
        "with."
    )


# From words.


def test_a_word_tokenizer_has_an_id_per_word_and_the_end_token_last():
    tokenizer = word_tokenizer(["a digit 1", "A digit 2."], context=7)
    assert (tokenizer.context, tokenizer.vocabulary, tokenizer.end_token) == (7, 7, 6)
    want = [[5, 3, 4, 1, 6, 0, 0], [5, 3, 2, 0, 6, 0, 0]]  # sorted: . 1 2 a digit
    np.testing.assert_array_equal(tokenizer.encode(["a  digit 1", "A 2."]), want)
    again = word_tokenizer(["2. 1", "digit a"], context=7)  # their order does not count
    np.testing.assert_array_equal(again.encode(["a digit 1", "A 2."]), want)


def test_unknown_words_are_an_error():
    tokenizer = word_tokenizer(["a photo of a cat"], context=9)
    assert error_of(ValueError, tokenizer.encode, ["a cat", "a Painting of a dog"]) == (
        "the tokenizer does not know 'Painting', 'dog' in 'a Painting of a dog'; use other words, "
        "or a tokenizer made with these."
    )


def test_a_text_of_words_that_is_longer_than_the_context_is_an_error():
    tokenizer = word_tokenizer(["a photo of a cat"], context=4)
    assert error_of(ValueError, tokenizer.encode, ["a photo of"]) == (
        "'a photo of' has 5 tokens, start and end included, but the model reads at most 4; "
        "shorten it."
    )


def test_a_clip_reads_the_tokens_of_a_word_tokenizer():
    tokenizer = word_tokenizer(["a photo of a cat", "dog"], context=8)
    model = clip.clip(
        image_size=8,
        patch_size=4,
        width=8,
        depth=1,
        num_heads=2,
        features=4,
        vocabulary=tokenizer.vocabulary,
        context=tokenizer.context,
        text_width=8,
        text_depth=1,
        text_num_heads=2,
    )
    assert model.sizes.end_token == tokenizer.end_token
    variables = clip.init_clip(model, jax.random.key(0))
    tokens = jnp.asarray(tokenizer.encode(["a cat", "a dog"]))
    features = clip.encode_text(model, variables, tokens)
    assert np.isfinite(features).all() and np.abs(features[0] - features[1]).max() > 1e-3
    unpadded = clip.encode_text(model, variables, tokens[:, :4])  # nobody sees the padding
    np.testing.assert_allclose(features, unpadded, atol=1e-6)


# Class names.


def test_class_names_must_differ():
    check_class_names(["cat", "dog", "the cat"])
    names = ["crane", "cat", "Crane ", "polar  bear", "dog", "Polar bear"]
    assert error_of(ValueError, check_class_names, names) == (
        "class names are there more than once, upper case and spaces aside: 'crane' (classes "
        "[0, 2]), 'polar bear' (classes [3, 5]); give every class a name of its own."
    )
