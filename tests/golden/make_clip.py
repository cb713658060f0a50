"""Makes the CLIP folders beside this file: `python tests/golden/make_clip.py`.

For development only. Its packages are no requirement of ours and want an environment of their own,
`pip install torch transformers open_clip_torch`; the committed folders were made with torch 2.13.0,
transformers 5.23.0 and open_clip_torch 3.3.0.

Every folder holds a tiny CLIP with random weights as its library saves it (`hugging_face_*`,
`open_clip_*`), a `tokenizer.json`, and `expected.npz`: inputs, and what the library returned for
them in float64.
"""

from pathlib import Path

import numpy as np
import open_clip
import torch
import transformers
from open_clip.push_to_hf_hub import save_for_hf

FOLDER = Path(__file__).parent
TEXTS = ["a photo of a cat", "  A Photo\tof a DOG! ", "naïve 2 cats", ""]
WORDS = "a photo of the cat dog"  # each becomes one token

IMAGE_SIZE, PATCH_SIZE, CONTEXT, FEATURES = 12, 4, 20, 10
IMAGE_WIDTH, IMAGE_DEPTH, IMAGE_HEADS = 16, 2, 4
TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS = 8, 3, 4


def make_tokenizer() -> transformers.CLIPTokenizer:
    """CLIP's byte-level BPE with merges for a few words only; the end token has the highest id."""
    letters = list(transformers.convert_slow_tokenizer.bytes_to_unicode().values())
    tokens, merges = letters + [letter + "</w>" for letter in letters], []
    for word in WORDS.split():
        first, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for second in rest:
            merges.append((first, second))
            first += second
    tokens += dict.fromkeys(first + second for first, second in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocabulary, list(dict.fromkeys(merges)))


def draw_weights(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that let every part of the model show in its output, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight += 1.0
        model.logit_scale.fill_(1.5)
    return model.eval()


def make_inputs(tokenizer, vocabulary: int, padding: int, seed: int):
    """Images f32[3, H, W, 3], and token ids of `TEXTS` and of one row of any ids before the end."""
    random = np.random.default_rng(seed)
    images = random.standard_normal((3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    any_ids = random.integers(0, vocabulary - 1, CONTEXT // 2)
    any_ids[1] = vocabulary - 1  # above the end token, or itself a first end token
    rows = [*tokenizer(TEXTS).input_ids, [*any_ids, tokenizer.eos_token_id]]
    tokens = np.full((len(rows), CONTEXT), padding, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return images, tokens


def save_expected(folder: Path, inputs, encode_images, encode_text, logit_scale) -> None:
    """Writes inputs, features and logits, given the library's own two towers in float64."""
    images, tokens = inputs
    pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    with torch.no_grad():
        image_features = encode_images(pixels)
        text_features = encode_text(torch.from_numpy(tokens).long())
    unit = torch.nn.functional.normalize
    logits = logit_scale.exp() * unit(image_features) @ unit(text_features).T
    np.savez_compressed(
        folder / "expected.npz",
        images=images,
        tokens=tokens,
        texts=np.asarray(TEXTS),
        image_features=image_features.numpy(),
        text_features=text_features.numpy(),
        logits=logits.detach().numpy(),
    )


def make_hugging_face(
    name: str, seed: int, activation: str, *, spare: int, old_end_token: bool
) -> None:
    """A `CLIPModel` with `spare` ids above the end token; old configs name 2 as end token."""
    tokenizer = make_tokenizer()
    vocabulary = len(tokenizer) + spare
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "num_hidden_layers": TEXT_DEPTH,
            "num_attention_heads": TEXT_HEADS,
            "max_position_embeddings": CONTEXT,
            "hidden_act": activation,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": 2 if old_end_token else tokenizer.eos_token_id,
        },
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "hidden_size": IMAGE_WIDTH,
            "intermediate_size": 4 * IMAGE_WIDTH,
            "num_hidden_layers": IMAGE_DEPTH,
            "num_attention_heads": IMAGE_HEADS,
            "hidden_act": activation,
        },
        projection_dim=FEATURES,
    )
    model = draw_weights(transformers.CLIPModel(config), seed)
    model.save_pretrained(FOLDER / name)
    tokenizer.backend_tokenizer.save(str(FOLDER / name / "tokenizer.json"), pretty=False)
    model = model.double()
    save_expected(
        FOLDER / name,
        make_inputs(tokenizer, vocabulary, tokenizer.eos_token_id, seed),
        lambda images: model.visual_projection(model.vision_model(images).pooler_output),
        lambda tokens: model.text_projection(model.text_model(tokens).pooler_output),
        model.logit_scale,
    )


def make_open_clip(name: str, seed: int, *, quick_gelu: bool) -> None:
    """A `CLIP` of open_clip, which gives every head of the image tower 64 channels by default."""
    tokenizer = make_tokenizer()
    config = {
        "embed_dim": FEATURES,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "width": IMAGE_WIDTH,
            "layers": IMAGE_DEPTH,
            "head_width": IMAGE_WIDTH // IMAGE_HEADS,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(tokenizer),
            "width": TEXT_WIDTH,
            "layers": TEXT_DEPTH,
            "heads": TEXT_HEADS,
        },
    }
    if quick_gelu:
        config["quick_gelu"] = True
    model = draw_weights(open_clip.CLIP(**config), seed)
    model.visual.image_mean = open_clip.OPENAI_DATASET_MEAN
    model.visual.image_std = open_clip.OPENAI_DATASET_STD
    save_for_hf(model, tokenizer, config, FOLDER / name, safe_serialization=True)
    (FOLDER / name / "tokenizer_config.json").unlink()
    tokenizer.backend_tokenizer.save(str(FOLDER / name / "tokenizer.json"), pretty=False)
    model = model.double()
    inputs = make_inputs(tokenizer, len(tokenizer), 0, seed)
    save_expected(FOLDER / name, inputs, model.encode_image, model.encode_text, model.logit_scale)


if __name__ == "__main__":
    make_hugging_face("hugging_face_quick_gelu", 0, "quick_gelu", spare=0, old_end_token=True)
    make_hugging_face("hugging_face_gelu", 1, "gelu", spare=3, old_end_token=False)
    make_open_clip("open_clip_quick_gelu", 2, quick_gelu=True)
    make_open_clip("open_clip_gelu", 3, quick_gelu=False)
