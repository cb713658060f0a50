"""What torchvision, timm, transformers and others call the layers of the built-in networks."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxpmi.models import efficientnet_lite
from jaxpmi.models import mobilenet_v2
from jaxpmi.models.imagenet_resnet import BASIC_STAGES
from jaxpmi.models.imagenet_resnet import BOTTLENECK_STAGES
from jaxpmi.models.inverted_residual import Stage
from jaxpmi.models.vgg import STAGES as VGG_STAGES
from jaxpmi.models.vit import DEPTH
from jaxpmi.weights.layer_sources import Layers


class Names(NamedTuple):
    """One network as one library names it.

    Attributes:
      architecture: a key of `MODELS`.
      library: whose names these are, for messages.
      blocks: of every block the names of its layers.
      head: the name of the classifier.
      width: the tensor whose first axis that is not 1 is the network's width.
      patch: the tensor of the first convolution, and the size of its kernel.
      image_size: pixels of the images that it is usually trained with.
    """

    architecture: str
    library: str
    blocks: Sequence[Layers]
    head: str
    width: str
    patch: tuple[str, int]
    image_size: int = 224

    def layers(self) -> set[str]:
        """All stored layers, and tensors that are no layer's."""
        names = {self.head}
        for block in self.blocks:
            for stored in block.values():
                parts = (stored,) if isinstance(stored, str) else stored
                names |= {part.format(i) for part in parts for i in range(DEPTH)}
        return names


def all_names() -> list[Names]:
    """Every network in every library's names."""
    return [
        *(_resnet(depth) for depth in (*BASIC_STAGES, *BOTTLENECK_STAGES)),
        *(_transformers_resnet(depth) for depth in (*BASIC_STAGES, *BOTTLENECK_STAGES)),
        *(_cifar_resnet(depth) for depth in BASIC_STAGES),
        _mobilenet_v2(),
        _timm_mobilenet_v2(),
        _transformers_mobilenet_v2(),
        *(_vgg(depth) for depth in VGG_STAGES),
        *(_timm_vgg(depth) for depth in VGG_STAGES),
        *(_torchvision_vit(patch) for patch in (16, 32)),
        *(_timm_vit(patch) for patch in (16, 32)),
        *(_transformers_vit(patch) for patch in (16, 32)),
        *(_transformers_vit_in_memory(patch) for patch in (16, 32)),
        _efficientnet_lite0(),
    ]


def _stages(depth):
    """(stage, place in it, whether it has a projection) of every residual block."""
    bottleneck = depth in BOTTLENECK_STAGES
    for stage, count in enumerate((BASIC_STAGES | BOTTLENECK_STAGES)[depth]):
        for i in range(count):
            yield stage, i, i == 0 and (bottleneck or stage > 0)


def _shortcut(depth):
    """What a residual block of ours calls its projection and the BatchNorm of it."""
    return ("shortcut", "shortcut_bn") if depth in BOTTLENECK_STAGES else ("conv3", "bn3")


def _num_convs(depth):
    return 3 if depth in BOTTLENECK_STAGES else 2


def _resnet(depth):
    blocks = [{"conv": "conv1", "bn": "bn1"}]
    for stage, i, projects in _stages(depth):
        here = f"layer{stage + 1}.{i}"
        block = {
            f"{kind}{n}": f"{here}.{kind}{n}"
            for n in range(1, _num_convs(depth) + 1)
            for kind in ("conv", "bn")
        }
        if projects:
            conv, bn = _shortcut(depth)
            block |= {conv: f"{here}.downsample.0", bn: f"{here}.downsample.1"}
        blocks.append(block)
    name = f"imagenet_resnet{depth}"
    return Names(name, "torchvision's and timm's", blocks, "fc", "conv1.weight", ("conv1", 7))


def _transformers_resnet(depth):
    stem = "resnet.embedder.embedder"
    blocks = [{"conv": f"{stem}.convolution", "bn": f"{stem}.normalization"}]
    for stage, i, projects in _stages(depth):
        here, block = f"resnet.encoder.stages.{stage}.layers.{i}", {}
        places = {n: f"{here}.layer.{n - 1}" for n in range(1, _num_convs(depth) + 1)}
        for n, place in places.items():
            block |= {f"conv{n}": f"{place}.convolution", f"bn{n}": f"{place}.normalization"}
        if projects:
            conv, bn = _shortcut(depth)
            place = f"{here}.shortcut"
            block |= {conv: f"{place}.convolution", bn: f"{place}.normalization"}
        blocks.append(block)
    first = f"{stem}.convolution"
    return Names(
        f"imagenet_resnet{depth}", "transformers'", blocks, "classifier.1", f"{first}.weight",
        (first, 7),
    )  # fmt: skip


def _cifar_resnet(depth):
    """As in the widespread PyTorch code for CIFAR, of which DeepInversion's teacher is."""
    blocks = [{"conv": "conv1", "bn": "bn1"}]
    for stage, i, projects in _stages(depth):
        here = f"layer{stage + 1}.{i}"
        block = {f"{kind}{n}": f"{here}.{kind}{n}" for n in (1, 2) for kind in ("conv", "bn")}
        if projects:
            block |= {"conv3": f"{here}.shortcut.0", "bn3": f"{here}.shortcut.1"}
        blocks.append(block)
    return Names(
        f"resnet{depth}", "pytorch-cifar's", blocks, "linear", "conv1.weight", ("conv1", 3), 32
    )


def _inverted_residuals(stages: Sequence[Stage]):
    """(stage, place in it, whether it has an expansion) of every block."""
    for stage, settings in enumerate(stages):
        for i in range(settings.num_blocks):
            yield stage, i, settings.expansion > 1


def _mobilenet_v2():
    blocks = [{"conv": "features.0.0", "bn": "features.0.1"}]
    for n, (_, _, expands) in enumerate(_inverted_residuals(mobilenet_v2.STAGES), 1):
        here, block, k = f"features.{n}.conv", {}, 0
        if expands:
            block, k = {"expand": f"{here}.0.0", "expand_bn": f"{here}.0.1"}, 1
        block |= {"depthwise": f"{here}.{k}.0", "depthwise_bn": f"{here}.{k}.1"}
        block |= {"project": f"{here}.{k + 1}", "project_bn": f"{here}.{k + 2}"}
        blocks.append(block)
    last = f"features.{len(blocks)}"
    blocks.append({"conv": f"{last}.0", "bn": f"{last}.1"})
    return Names(
        "mobilenet_v2", "torchvision's", blocks, "classifier.1", "features.0.0.weight",
        ("features.0.0", 3),
    )  # fmt: skip


def _timm_mobilenet_v2():
    blocks = [{"conv": "conv_stem", "bn": "bn1"}]
    for stage, i, expands in _inverted_residuals(mobilenet_v2.STAGES):
        here, block, n = f"blocks.{stage}.{i}", {}, 1
        if expands:
            block, n = {"expand": f"{here}.conv_pw", "expand_bn": f"{here}.bn1"}, 2
        block |= {"depthwise": f"{here}.conv_dw", "depthwise_bn": f"{here}.bn{n}"}
        project = f"{here}.conv_pwl" if expands else f"{here}.conv_pw"
        block |= {"project": project, "project_bn": f"{here}.bn{n + 1}"}
        blocks.append(block)
    blocks.append({"conv": "conv_head", "bn": "bn2"})
    return Names(
        "mobilenet_v2", "timm's", blocks, "classifier", "conv_stem.weight", ("conv_stem", 3)
    )


def _transformers_mobilenet_v2():
    def layer(ours, place):
        return {ours: f"{place}.convolution", f"{ours}_bn": f"{place}.normalization"}

    root = "mobilenet_v2"
    first = f"{root}.conv_stem.first_conv"
    blocks = [{"conv": f"{first}.convolution", "bn": f"{first}.normalization"}]
    for n, (_, _, expands) in enumerate(_inverted_residuals(mobilenet_v2.STAGES)):
        here = f"{root}.layer.{n - 1}" if expands else f"{root}.conv_stem"
        block = layer("expand", f"{here}.expand_1x1") if expands else {}
        block |= layer("depthwise", f"{here}.conv_3x3") | layer("project", f"{here}.reduce_1x1")
        blocks.append(block)
    last = f"{root}.conv_1x1"
    blocks.append({"conv": f"{last}.convolution", "bn": f"{last}.normalization"})
    return Names(
        "mobilenet_v2_tf", "transformers'", blocks, "classifier", f"{first}.convolution.weight",
        (f"{first}.convolution", 3),
    )  # fmt: skip


def _efficientnet_lite0():
    blocks = [{"conv": "_conv_stem", "bn": "_bn0"}]
    for n, _ in enumerate(_inverted_residuals(efficientnet_lite.STAGES)):
        here = f"_blocks.{n}"
        layers = {"depthwise": "_depthwise_conv", "depthwise_bn": "_bn1"}
        layers |= {"project": "_project_conv", "project_bn": "_bn2"}
        if n:
            layers |= {"expand": "_expand_conv", "expand_bn": "_bn0"}
        blocks.append({ours: f"{here}.{theirs}" for ours, theirs in layers.items()})
    blocks.append({"conv": "_conv_head", "bn": "_bn1"})
    return Names(
        "efficientnet_lite0", "EfficientNet-PyTorch's", blocks, "_fc", "_conv_stem.weight",
        ("_conv_stem", 3),
    )  # fmt: skip


def _vgg_features(depth):
    """Blocks of convolutions, numbered with their BatchNorms, ReLUs and maxima."""
    blocks, n = [], 0
    for count in VGG_STAGES[depth]:
        for _ in range(count):
            blocks.append({"conv": f"features.{n}", "bn": f"features.{n + 1}"})
            n += 3
        n += 1
    return blocks


def _vgg(depth):
    blocks = [*_vgg_features(depth), {"conv": "classifier.0"}, {"linear": "classifier.3"}]
    return Names(
        f"vgg{depth}", "torchvision's", blocks, "classifier.6", "features.0.weight",
        ("features.0", 3),
    )  # fmt: skip


def _timm_vgg(depth):
    hidden = [{"conv": "pre_logits.fc1"}, {"linear": "pre_logits.fc2"}]
    return Names(
        f"vgg{depth}", "timm's", [*_vgg_features(depth), *hidden], "head.fc", "features.0.weight",
        ("features.0", 3),
    )  # fmt: skip


def _torchvision_vit(patch):
    block = "encoder.layers.encoder_layer_{}"
    blocks = [
        {"linear": "conv_proj"},
        {"class_token": "class_token", "positions": "encoder.pos_embedding"},
        {
            "norm1": f"{block}.ln_1",
            "attention/qkv/kernel": f"{block}.self_attention.in_proj_weight",
            "attention/qkv/bias": f"{block}.self_attention.in_proj_bias",
            "attention/out": f"{block}.self_attention.out_proj",
            "norm2": f"{block}.ln_2",
            "mlp/up": f"{block}.mlp.0",
            "mlp/down": f"{block}.mlp.3",
        },
        {"norm": "encoder.ln"},
    ]
    return Names(
        f"vit_patch{patch}", "torchvision's", blocks, "heads.head", "class_token",
        ("conv_proj", patch),
    )  # fmt: skip


def _timm_vit(patch):
    block = "blocks.{}"
    blocks = [
        {"linear": "patch_embed.proj"},
        {"class_token": "cls_token", "positions": "pos_embed"},
        {
            "norm1": f"{block}.norm1",
            "attention/qkv": f"{block}.attn.qkv",
            "attention/out": f"{block}.attn.proj",
            "norm2": f"{block}.norm2",
            "mlp/up": f"{block}.mlp.fc1",
            "mlp/down": f"{block}.mlp.fc2",
        },
        {"norm": "norm"},
    ]
    return Names(
        f"vit_patch{patch}", "timm's", blocks, "head", "cls_token", ("patch_embed.proj", patch)
    )


def _transformers_vit(patch):
    """As in its files."""
    block = "vit.encoder.layer.{}"
    return _vit_of_transformers(
        patch,
        {
            "attention/qkv": tuple(f"{block}.attention.attention.{x}" for x in _QKV),
            "attention/out": f"{block}.attention.output.dense",
            "mlp/up": f"{block}.intermediate.dense",
            "mlp/down": f"{block}.output.dense",
        },
        block,
    )


def _transformers_vit_in_memory(patch):
    """As in the state dicts of its version 5."""
    block = "vit.layers.{}"
    return _vit_of_transformers(
        patch,
        {
            "attention/qkv": tuple(f"{block}.attention.{x[0]}_proj" for x in _QKV),
            "attention/out": f"{block}.attention.o_proj",
            "mlp/up": f"{block}.mlp.fc1",
            "mlp/down": f"{block}.mlp.fc2",
        },
        block,
    )


_QKV = ("query", "key", "value")


def _vit_of_transformers(patch, layers, block):
    embeddings = "vit.embeddings"
    patches, token = f"{embeddings}.patch_embeddings.projection", f"{embeddings}.cls_token"
    norms = {"norm1": f"{block}.layernorm_before", "norm2": f"{block}.layernorm_after"}
    blocks = [
        {"linear": patches},
        {"class_token": token, "positions": f"{embeddings}.position_embeddings"},
        {**norms, **layers},
        {"norm": "vit.layernorm"},
    ]
    return Names(
        f"vit_patch{patch}", "transformers'", blocks, "classifier", token, (patches, patch)
    )
