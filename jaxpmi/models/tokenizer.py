"""Texts to token ids: tokenizers of pretrained CLIPs from their files, small ones from words."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"  # as CLIP spells them


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Turns texts into the token ids of one model, `TextTransformer`."""

    encoder: "tokenizers.Tokenizer"  # puts a start and an end token around a text
    context: int  # tokens of a text, start, end and padding included
    vocabulary: int  # token ids are in [0, vocabulary)
    end_token: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids i32[B, T], T the context, of B texts: start, text, end, then zeros.

        Raises:
          ValueError: a text is longer than the context, or has a part that is not in the
            vocabulary; byte-level tokenizers, as CLIP's own, know every text.
        """
        if isinstance(texts, str):
            raise TypeError(f"got the text {texts!r}, expected a list of texts.")
        tokens = np.zeros((len(texts), self.context), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = self._encode_one(text)
            row[: len(ids)] = ids
        return tokens

    def _encode_one(self, text):
        encoding = self.encoder.encode(text)
        ids, spans = encoding.ids, encoding.offsets
        # The end token also stands for what is unknown, and the model would stop reading there.
        inner = zip(ids[:-1], spans[:-1], strict=True)
        unknown = [text[start:end] for token, (start, end) in inner if token == self.end_token]
        if unknown:
            raise ValueError(
                f"the tokenizer does not know {', '.join(map(repr, unknown))} in {text!r}; use "
                "other words, or a tokenizer made with these."
            )
        if len(ids) > self.context:
            raise ValueError(
                f"{text!r} has {len(ids)} tokens, start and end included, but the model reads at "
                f"most {self.context}; shorten it."
            )
        return ids


def read_tokenizer(path: Path, context: int) -> Tokenizer:
    """The tokenizer of a file `tokenizer.json`, as the libraries tokenizers and transformers write.

    Args:
      path: the file.
      context: tokens of a text that the model reads.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is of another format, or does not put a start and an end token around a text.
    """
    import tokenizers

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; put there the tokenizer.json that the model was published "
            "with (that of openai/clip-vit-base-patch16 serves all weights of OpenAI)."
        )
    try:
        encoder = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # what the library raises has no type of its own
        raise ValueError(
            f"{path} is not a file of the library tokenizers ({error}); put there the "
            "tokenizer.json that the model was published with."
        ) from error
    # A saved tokenizer may cut texts short without a word.
    encoder.no_truncation()
    encoder.no_padding()
    around = encoder.encode("").ids
    if len(around) != 2 or around[0] == around[1]:
        raise ValueError(
            f"{path} turns an empty text into the tokens {around}, but a start and an end token "
            "are expected, as CLIP has them; put there the tokenizer.json that the model was "
            "published with."
        )
    return _tokenizer(encoder, context)


def read_merges(vocabulary: Path, merges: Path, context: int) -> Tokenizer:
    """The tokenizer of `vocab.json` and `merges.txt`, as transformers wrote them for CLIP.

    Texts are normalised to NFC, spaces joined, letters lower-cased; words are byte-level BPE with
    "</w>" at their ends (Radford et al., 2021).

    Args:
      vocabulary: ids by token.
      merges: pairs of tokens, the first ones count first.
      context: tokens of a text that the model reads.

    Raises:
      ValueError: they are of another format, or lack the start or the end token.
    """
    import tokenizers
    from tokenizers import models
    from tokenizers import normalizers
    from tokenizers import pre_tokenizers
    from tokenizers import processors

    try:
        pairs = models.BPE.from_file(
            str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=END
        )
    except Exception as error:  # as above
        raise ValueError(
            f"{vocabulary} and {merges.name} are no vocabulary and merges of a CLIP ({error}); put "
            "there those that the model was published with."
        ) from error
    encoder = tokenizers.Tokenizer(pairs)
    around = {token: encoder.token_to_id(token) for token in (END, START)}
    if None in around.values():
        raise ValueError(
            f"{vocabulary} lacks {START} or {END}, which CLIP's texts begin and end with."
        )
    encoder.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    encoder.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=list(around.items())
    )
    encoder.add_special_tokens([START, END])
    return _tokenizer(encoder, context)


def word_tokenizer(texts: Sequence[str], context: int) -> Tokenizer:
    """A tokenizer that knows the words of `texts` and no others, for models without any files.

    Words are runs of letters and digits, lower-cased, and runs of other characters. As in CLIP the
    end token has the highest id and the start token the one before.

    Args:
      texts: every text that will be encoded, or any with the same words.
      context: tokens of a text that the model reads, start and end included.
    """
    import tokenizers
    from tokenizers import models
    from tokenizers import normalizers
    from tokenizers import pre_tokenizers
    from tokenizers import processors

    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Whitespace()
    words = {
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    ids = {word: i for i, word in enumerate([*sorted(words), START, END])}
    encoder = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=END))
    encoder.normalizer, encoder.pre_tokenizer = normalizer, splitter
    encoder.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(token, ids[token]) for token in (START, END)]
    )
    return _tokenizer(encoder, context)


def check_class_names(names: Sequence[str]) -> None:
    """Raises a `ValueError` that lists all classes whose names a tokenizer cannot tell apart."""
    classes = {}
    for i, name in enumerate(names):
        classes.setdefault(" ".join(name.lower().split()), []).append(i)
    repeated = [f"{name!r} (classes {ids})" for name, ids in classes.items() if len(ids) > 1]
    if repeated:
        raise ValueError(
            "class names are there more than once, upper case and spaces aside: "
            f"{', '.join(repeated)}; give every class a name of its own."
        )


def _tokenizer(encoder, context):
    vocabulary = max(encoder.get_vocab().values()) + 1
    return Tokenizer(encoder, context, vocabulary, end_token=encoder.encode("").ids[-1])
