"""The golden folders are made by tests/golden/make_clip.py; no test needs the libraries it uses."""

import functools
import json
import pickle
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from rows import block_of
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from jaxpmi.models import clip
from jaxpmi.models.vit import PatchEmbedding
from jaxpmi.weights.clip import load_clip
from jaxpmi.weights.clip_sizes import hugging_face_sizes
from jaxpmi.weights.clip_sizes import open_clip_sizes
from jaxpmi.weights.weight_names import PATCHES

GOLDEN = Path(__file__).parents[1] / "golden"
HUGGING_FACE, OPEN_CLIP = "hugging_face_quick_gelu", "open_clip_quick_gelu"
SIZES = {
    "image_size": 12,
    "patch_size": 4,
    "width": 16,
    "depth": 2,
    "num_heads": 4,
    "features": 10,
    "vocabulary": 525,
    "context": 20,
    "text_width": 8,
    "text_depth": 3,
    "text_num_heads": 4,
    "end_token": 524,
    "activation": "quick_gelu",
}
MODELS = {
    "hugging_face_quick_gelu": clip.clip(**SIZES),  # its config names 2 as the end token
    "hugging_face_gelu": clip.clip(**{**SIZES, "vocabulary": 528, "activation": "gelu"}),
    "open_clip_quick_gelu": clip.clip(**SIZES),
    "open_clip_gelu": clip.clip(**{**SIZES, "activation": "gelu"}),
}

load_golden = functools.cache(lambda name: load_clip(GOLDEN / name))


@pytest.fixture
def folder(tmp_path):
    """Copies a golden folder."""

    def copied(name):
        return Path(shutil.copytree(GOLDEN / name, tmp_path / name, dirs_exist_ok=True))

    return copied


def edit_config(path, field, value):
    """Sets a field, named with dots, of a JSON file."""
    config = json.loads(path.read_text())
    *sections, key = field.split(".")
    functools.reduce(dict.__getitem__, sections, config)[key] = value
    path.write_text(json.dumps(config))


def edit_tensors(path, edit):
    """Saves what `edit` makes of a file's tensors, or changes in place and returns None."""
    tensors = load_file(path)
    save_file(edit(tensors) or tensors, path)


def assert_equal(got, want):
    assert got.model == want.model
    chex.assert_trees_all_equal(got.variables, want.variables)
    texts = ["a photo of a cat", ""]
    np.testing.assert_array_equal(got.tokenizer.encode(texts), want.tokenizer.encode(texts))


# What is loaded.


@pytest.mark.parametrize("name", MODELS)
def test_features_and_logits_are_those_of_the_library(name):
    model, variables, *_ = load_golden(name)
    assert model == MODELS[name]
    expected = np.load(GOLDEN / name / "expected.npz")
    image_features = clip.encode_images(model, variables, expected["images"])
    text_features = clip.encode_text(model, variables, jnp.asarray(expected["tokens"]))
    logits = clip.similarity_logits(image_features, text_features, variables.logit_scale)
    got = {"image_features": image_features, "text_features": text_features, "logits": logits}
    for key, value in got.items():
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-5, err_msg=key)
        assert np.ptp(expected[key], 0).max() > 0.1  # inputs make a difference


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_the_library(name):
    expected = np.load(GOLDEN / name / "expected.npz")
    tokens = load_golden(name).tokenizer.encode(list(expected["texts"]))
    for got, want in zip(tokens, expected["tokens"], strict=False):  # the last row is no text
        end = list(want).index(524) + 1
        np.testing.assert_array_equal(got[:end], want[:end])
        np.testing.assert_array_equal(got[end:], 0)


def test_variables_are_those_of_a_fresh_model_with_other_numbers():
    model, variables, *_ = load_golden(HUGGING_FACE)
    fresh = clip.init_clip(model, jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal, variables.image.batch_stats, fresh.image.batch_stats
    )
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(variables) == shapes(fresh)


@pytest.mark.parametrize("name", [HUGGING_FACE, OPEN_CLIP])
def test_loading_twice_is_equal_and_a_right_model_may_be_given(name):
    assert_equal(load_clip(GOLDEN / name), load_golden(name))
    assert_equal(load_clip(str(GOLDEN / name), model=MODELS[name]), load_golden(name))
    token = clip.clip(**SIZES, statistics_axis="token")  # no file tells how moments are kept
    for option in ({"model": token}, {"statistics_axis": "token"}):
        loaded = load_clip(GOLDEN / name, **option)
        assert loaded.model == token
        moments = loaded.variables.image.batch_stats["block02"]["mlp"]
        assert moments.mean.shape == (2, 10, 1)  # blocks, positions, one for all channels


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_f32(folder, dtype):
    path = folder(HUGGING_FACE) / "model.safetensors"
    edit_tensors(path, lambda tensors: {k: v.astype(dtype) for k, v in tensors.items()})
    want = load_golden(HUGGING_FACE)
    params = jax.tree.map(lambda x: np.asarray(x).astype(dtype), want.variables)
    assert_equal(load_clip(path.parent), want._replace(variables=params))


def test_position_ids_and_other_constants_are_ignored(folder):
    path = folder(HUGGING_FACE)
    ids = {f"{t}_model.embeddings.position_ids": np.arange(3) for t in ("text", "vision")}
    edit_tensors(path / "model.safetensors", lambda tensors: tensors | ids)
    assert_equal(load_clip(path), load_golden(HUGGING_FACE))
    path = folder(OPEN_CLIP)
    constants = {"input_resolution": np.array(12), "context_length": np.array(20)}
    edit_tensors(path / "open_clip_model.safetensors", lambda tensors: tensors | constants)
    assert_equal(load_clip(path), load_golden(OPEN_CLIP))


# Names and folders.


def with_openai_names(tensors):
    """Hugging Face tensors as OpenAI names, joins and orients them."""
    for tower in ("vision_model", "text_model"):
        for i in range(SIZES["depth" if tower == "vision_model" else "text_depth"]):
            attention = f"{tower}.encoder.layers.{i}.self_attn"
            for end in ("weight", "bias"):
                parts = [tensors.pop(f"{attention}.{name}_proj.{end}") for name in "qkv"]
                tensors[f"{attention}.in_proj_{end}"] = np.concatenate(parts)
    replacements = {
        "vision_model.encoder.layers": "visual.transformer.resblocks",
        "text_model.encoder.layers": "transformer.resblocks",
        "self_attn": "attn",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "fc1": "c_fc",
        "fc2": "c_proj",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding": "visual.conv1",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm": "ln_final",
        "visual_projection.weight": "visual.proj",
        "text_projection.weight": "text_projection",
    }
    renamed = {}
    for name, tensor in tensors.items():
        transposed = name in ("visual_projection.weight", "text_projection.weight")
        for old, new in replacements.items():
            name = name.replace(old, new)
        renamed[name] = np.ascontiguousarray(tensor.T) if transposed else tensor
    return renamed


def test_a_file_with_openai_names_holds_the_same_weights(folder):
    path = folder(HUGGING_FACE)
    edit_tensors(path / "model.safetensors", with_openai_names)
    (path / "config.json").unlink()
    got = load_clip(path / "model.safetensors", model=MODELS[HUGGING_FACE])
    assert_equal(got, load_golden(HUGGING_FACE))


def test_shapes_tell_the_sizes_of_a_file_with_openai_names(folder):
    """Heads have 64 channels, which is what the tiny models do not have."""
    sizes = {**SIZES, "width": 128, "num_heads": 2, "text_width": 192, "text_num_heads": 3}
    path = folder(OPEN_CLIP)
    (path / "open_clip_config.json").unlink()

    def widen(tensors):
        wide = {16: 128, 48: 384, 64: 512, 8: 192, 24: 576, 32: 768}  # 1, 3 and 4 times the widths
        shapes = {name: [wide.get(n, n) for n in x.shape] for name, x in tensors.items()}
        return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}

    edit_tensors(path / "open_clip_model.safetensors", widen)
    loaded = load_clip(path / "open_clip_model.safetensors", activation="quick_gelu")
    assert loaded.model == clip.clip(**sizes)


def test_weights_stand_for_their_folder(folder):
    for name, weights in ((HUGGING_FACE, "model"), ("open_clip_gelu", "open_clip_model")):
        path = folder(name) / f"{weights}.safetensors"
        assert_equal(load_clip(path), load_golden(name))


def test_a_folder_with_files_of_both_libraries_is_of_open_clip_if_its_weights_are_there(folder):
    path = folder("open_clip_gelu")
    shutil.copy(GOLDEN / HUGGING_FACE / "config.json", path)
    shutil.copy(GOLDEN / HUGGING_FACE / "model.safetensors", path)
    assert_equal(load_clip(path), load_golden("open_clip_gelu"))
    (path / "open_clip_model.safetensors").unlink()
    assert_equal(load_clip(path), load_golden(HUGGING_FACE))


def test_open_clip_weights_may_have_the_common_name(folder):
    path = folder("open_clip_gelu")
    (path / "open_clip_model.safetensors").rename(path / "model.safetensors")
    assert_equal(load_clip(path), load_golden("open_clip_gelu"))


def test_patches_become_rows_in_our_order():
    kernel = np.random.default_rng(0).standard_normal((5, 3, 2, 2))
    image = np.random.default_rng(1).standard_normal((1, 2, 2, 3))
    block, _, _ = block_of(PatchEmbedding(2, 3, 5, rngs=nnx.Rngs(0)))
    got, _ = block.apply({"linear/kernel": PATCHES.convert(kernel)}, {}, jnp.asarray(image))
    np.testing.assert_allclose(got[0, 0, 0], np.einsum("dcij,ijc->d", kernel, image[0]), rtol=1e-5)
    assert PATCHES.stored_shape((12, 5)) == (5, 3, 2, 2)


# As it is found.


def test_shards_and_their_index_are_one_file(folder):
    path = folder(HUGGING_FACE)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    index = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert_equal(load_clip(path), load_golden(HUGGING_FACE))
    (path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names model-1.safetensors, which is not beside"):
        load_clip(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "clip.model."])
def test_a_prefix_of_all_names_is_taken_off(folder, prefix):
    path = folder(OPEN_CLIP)
    rename = lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}  # noqa: E731
    edit_tensors(path / "open_clip_model.safetensors", rename)
    assert_equal(load_clip(path), load_golden(OPEN_CLIP))


def test_vocabulary_and_merges_are_a_tokenizer(folder):
    path = folder(HUGGING_FACE)
    model = json.loads((path / "tokenizer.json").read_text())["model"]
    (path / "tokenizer.json").unlink()
    added = {"<|startoftext|>": 523, "<|endoftext|>": 524}
    (path / "vocab.json").write_text(json.dumps(model["vocab"] | added))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), "utf-8")
    golden = load_golden(HUGGING_FACE)
    assert_equal(load_clip(path), golden)
    texts = ["A photo\tof  a CAT, the dog's!", "na\u00efve 2 cats", "\u65e5\u672c a_b"]
    for text in texts:
        got, want = (load.tokenizer.encode([text]) for load in (load_clip(path), golden))
        np.testing.assert_array_equal(got, want)
    (path / "merges.txt").write_text("what is this")
    with pytest.raises(ValueError, match="are no vocabulary and merges of a CLIP"):
        load_clip(path)


def test_mlps_may_have_any_width(folder):
    """As those of ViT-bigG, whose ratio is 4.9231."""
    path = folder(OPEN_CLIP)
    edit_config(path / "open_clip_config.json", "model_cfg.vision_cfg.mlp_ratio", 4.9231)

    def widen(tensors):
        for i in range(2):
            mlp = f"visual.transformer.resblocks.{i}.mlp"
            tensors[f"{mlp}.c_fc.weight"] = np.ones((78, 16), np.float32)
            tensors[f"{mlp}.c_fc.bias"] = np.ones(78, np.float32)
            tensors[f"{mlp}.c_proj.weight"] = np.ones((16, 78), np.float32)

    edit_tensors(path / "open_clip_model.safetensors", widen)
    sizes = {**SIZES, "mlp_width": 78}
    assert load_clip(path).model == clip.clip(**sizes)
    (path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match="width 16, which does not divide into heads"):
        load_clip(path / "open_clip_model.safetensors", activation="gelu")
    assert load_clip(
        path / "open_clip_model.safetensors", model=clip.clip(**sizes)
    ).model.sizes.mlp_width == 78  # fmt: skip


def test_preprocessing_is_read_and_kept(folder):
    path = folder(OPEN_CLIP)
    images = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    edit_config(path / "open_clip_config.json", "preprocess_cfg", images)
    said = []
    loaded = load_clip(path, say=said.append)
    assert (loaded.mean, loaded.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert "mean [0.5, 0.4, 0.3], std [0.2, 0.2, 0.1] (open_clip_config.json)" in said[-1]
    path = folder(HUGGING_FACE)
    images = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps(images))
    loaded = load_clip(path)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_lone_file_has_its_activation_asked_for(folder):
    path = folder(OPEN_CLIP) / "open_clip_model.safetensors"
    (path.parent / "open_clip_config.json").unlink()

    def widen(tensors):
        wide = {16: 128, 48: 384, 64: 512, 8: 192, 24: 576, 32: 768}
        shapes = {name: [wide.get(n, n) for n in x.shape] for name, x in tensors.items()}
        return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}

    edit_tensors(path, widen)
    with pytest.raises(ValueError, match="tells its activation.*activation='quick_gelu' for Op"):
        load_clip(path)
    assert load_clip(path, activation="gelu").model.sizes.activation == "gelu"


def test_another_image_size_is_had_by_interpolated_positions_and_said(folder):
    said = []
    loaded = load_clip(GOLDEN / HUGGING_FACE, image_size=20, say=said.append)
    assert loaded.model.sizes.image_size == 20
    assert said[0] == "positions of 3 x 3 patches are interpolated to 5 x 5"
    images = np.zeros((1, 20, 20, 3), np.float32)
    assert clip.encode_images(loaded.model, loaded.variables, images).shape == (1, 10)


# Sizes.


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("clip_vit_b32", 151_277_313),
        ("clip_vit_b16", 149_620_737),
        ("clip_vit_l14", 427_616_513),
    ],
)
def test_published_models_have_the_published_number_of_parameters(name, num_parameters):
    model = clip.CLIP_MODELS[name]()
    variables = jax.eval_shape(lambda key: clip.init_clip(model, key), jax.random.key(0))
    learned = variables.image.params, variables.text, variables.logit_scale
    assert sum(leaf.size for leaf in jax.tree.leaves(learned)) == num_parameters


def test_fields_that_a_config_leaves_out_are_those_of_vit_b32(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "clip", "text_config": null}')
    assert clip.clip(**hugging_face_sizes(path)) == clip.clip_vit_b32()


def test_an_old_config_of_vit_l14(tmp_path):
    """Its sections are there twice, one of them incomplete."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision |= {"num_attention_heads": 16, "patch_size": 14}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    config = {"model_type": "clip", "projection_dim": 768, "text_config_dict": text}
    config |= {"text_config": {"eos_token_id": 2}, "vision_config": vision}
    config |= {"vision_config_dict": None}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert clip.clip(**hugging_face_sizes(path)) == clip.clip_vit_l14()


def test_a_config_of_open_clip_for_vit_b16(tmp_path):
    model = {"embed_dim": 512, "quick_gelu": True, "vision_cfg": {"layers": 12}, "text_cfg": {}}
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": model}))
    assert clip.clip(**open_clip_sizes(path)) == clip.clip_vit_b16()


# Errors.


def check_error(path, message, error=ValueError, **options):
    with pytest.raises(error) as caught:
        load_clip(path, **options)
    assert str(caught.value) == message


def test_all_tensors_that_do_not_fit_are_listed_at_once(folder):
    path = folder(HUGGING_FACE) / "model.safetensors"
    block = "vision_model.encoder.layers.1"

    def edit(tensors):
        del tensors["text_projection.weight"]
        del tensors[f"{block}.self_attn.k_proj.bias"]
        tensors["classifier.weight"] = tensors["classifier.bias"] = np.zeros(3)
        tensors["logit_scale"] = np.zeros(1)
        tensors[f"{block}.mlp.fc1.weight"] = np.zeros((64, 15))
        tensors["vision_model.embeddings.patch_embedding.weight"] = np.zeros((16, 3, 2, 2))

    edit_tensors(path, edit)
    message = (
        f"{path} does not fit the model: it lacks {block}.self_attn.k_proj.bias, "
        "text_projection.weight; it also has classifier.bias, classifier.weight; "
        "vision_model.embeddings.patch_embedding.weight is (16, 3, 2, 2), not (16, 3, 4, 4); "
        f"{block}.mlp.fc1.weight is (64, 15), not (64, 16); logit_scale is (1,), not ()."
    )
    check_error(path.parent, message)


def test_a_config_of_other_sizes_than_the_weights_is_an_error(folder):
    path = folder(OPEN_CLIP)
    edit_config(path / "open_clip_config.json", "model_cfg.embed_dim", 11)
    message = (
        f"{path / 'open_clip_model.safetensors'} does not fit the model: "
        "visual.proj is (16, 10), not (16, 11); text_projection is (8, 10), not (8, 11)."
    )
    check_error(path, message)


def test_another_model_than_the_one_given_is_an_error():
    other = clip.clip(**{**SIZES, "patch_size": 6, "num_heads": 2, "activation": "gelu"})
    message = (
        f"{GOLDEN / HUGGING_FACE / 'model.safetensors'} is of another CLIP than the one given: "
        "patch_size 4, not 6; num_heads 4, not 2; activation quick_gelu, not gelu."
    )
    check_error(GOLDEN / HUGGING_FACE, message, model=other)


def test_another_model_than_the_one_given_for_a_file_is_an_error(folder):
    path = folder(OPEN_CLIP) / "open_clip_model.safetensors"
    (path.parent / "open_clip_config.json").unlink()
    message = (
        f"{path} is of another CLIP than the one given: image_size 12, not 224; patch_size 4, not "
        "16; width 16, not 768; depth 2, not 12; features 10, not 512; vocabulary 525, not 49408; "
        "context 20, not 77; text_width 8, not 512; text_depth 3, not 12; mlp_width 64, not 3072; "
        "text_mlp_width 32, not 2048."
    )
    check_error(path, message, model=clip.clip_vit_b16())
    message = (
        f"{path} has width 16, which does not divide into heads of 64 as in OpenAI's models; say "
        "what its model is."
    )
    check_error(path, message)


def test_a_file_without_openai_names_is_an_error(folder):
    path = folder(HUGGING_FACE) / "model.safetensors"
    (path.parent / "config.json").unlink()
    message = (
        f"{path} lacks visual.conv1.weight, visual.positional_embedding, token_embedding.weight, "
        "positional_embedding, text_projection, visual.transformer.resblocks.0, "
        "transformer.resblocks.0, in which OpenAI's weights show their sizes; a single file must "
        "have the names of OpenAI or open_clip, and of a Hugging Face model the folder is needed."
    )
    check_error(path, message)


ACTIVATIONS = "only 'quick_gelu' or 'gelu' is supported"
WHOLE = "a whole number of at least 1 is expected"
END_TOKEN = "a vocabulary of 525; correct it to the id of the end token in tokenizer.json"


@pytest.mark.parametrize(
    ("name", "field", "value", "expected"),
    [
        (HUGGING_FACE, "model_type", "bert", "only 'clip' is supported"),
        (HUGGING_FACE, "vision_config.hidden_act", "relu", ACTIVATIONS),
        (HUGGING_FACE, "text_config.hidden_act", "gelu", "only 'quick_gelu' is supported"),
        (HUGGING_FACE, "text_config.layer_norm_eps", 1e-6, "only 1e-05 is supported"),
        (HUGGING_FACE, "text_config.intermediate_size", 4.5, WHOLE),
        (HUGGING_FACE, "vision_config.image_size", [12, 12], WHOLE),
        (HUGGING_FACE, "text_config.eos_token_id", 49407, END_TOKEN),
        (OPEN_CLIP, "model_cfg.vision_cfg.pool_type", "avg", "only 'tok' is supported"),
        (OPEN_CLIP, "model_cfg.text_cfg.no_causal_mask", True, "only False is supported"),
        (OPEN_CLIP, "model_cfg.embed_dim", None, WHOLE),
    ],
)
def test_a_config_that_we_cannot_follow_is_an_error(folder, name, field, value, expected):
    (path,) = folder(name).glob("*config.json")
    edit_config(path, field, value)
    check_error(path.parent, f"{path} has {field} = {value!r}, but {expected}.")


def test_a_config_that_is_not_json_is_an_error(folder):
    path = folder(HUGGING_FACE) / "config.json"
    path.write_text("<html>")
    check_error(path.parent, f"{path} is no JSON file (JSONDecodeError); fetch it again.")


@pytest.mark.parametrize("file_name", [None, "notes.txt", "pytorch_model.bin"])
def test_a_folder_without_a_clip_is_an_error(tmp_path, file_name):
    if file_name:
        (tmp_path / file_name).write_text("weights")
    message = (
        f"{tmp_path} is no folder of a CLIP, which has open_clip_config.json and "
        f"open_clip_model.safetensors or config.json and model.safetensors."
    )
    check_error(tmp_path, message)


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    path = tmp_path / "clip.safetensors"
    message = (
        f"{path} does not exist; expected a folder of Hugging Face or open_clip, or a .safetensors "
        "file."
    )
    check_error(path, message, FileNotFoundError)


class Bomb:
    """Makes a file when its pickle is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file_name", ["clip.pt", "clip.pth", "pytorch_model.bin", "clip"])
def test_a_pickle_is_refused_without_being_run(tmp_path, file_name):
    path, mark = tmp_path / file_name, tmp_path / "mark"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match="cannot be read|that can be read safely"):
        load_clip(path, activation="gelu")
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()


def check_not_safetensors(path):
    """The reason in brackets is the library's own."""
    with pytest.raises(ValueError) as caught:
        load_clip(path)
    before, reason = str(caught.value).split(" (", 1)
    reason, after = reason.rsplit(")", 1)
    assert before == f"{path} is not a whole safetensors file" and after == "; fetch it once more."
    assert "deserializing header" in reason


@pytest.mark.parametrize("num_bytes", [0, 4, 1000, -1])
def test_a_truncated_file_is_an_error(folder, num_bytes):
    path = folder(HUGGING_FACE) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    check_not_safetensors(path)


def test_a_pickle_named_safetensors_is_not_read_either(tmp_path):
    path, mark = tmp_path / "clip.safetensors", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    check_not_safetensors(path)
    assert not mark.exists()


def test_a_missing_tokenizer_is_an_error(folder):
    path = folder(OPEN_CLIP) / "tokenizer.json"
    path.unlink()
    message = (
        f"{path} does not exist; put there the tokenizer.json that the model was published with "
        "(that of openai/clip-vit-base-patch16 serves all weights of OpenAI)."
    )
    check_error(path.parent, message, FileNotFoundError)


def test_a_tokenizer_of_another_model_is_an_error(folder):
    path = folder("hugging_face_gelu")
    edit_config(path / "config.json", "text_config.eos_token_id", 527)
    message = (
        f"{path / 'tokenizer.json'} has 525 tokens and ends a text with 524, but the text tower "
        "has 528 and reads a text at 527; put there the tokenizer.json that the model was "
        "published with."
    )
    check_error(path, message)
