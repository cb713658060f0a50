"""Backbones by name: a plain dict of constructors, each taking `width`."""

import functools
from typing import Any

from jaxpmi.lookup import find
from jaxpmi.models import efficientnet_lite
from jaxpmi.models import encoder_decoder
from jaxpmi.models import plain_cnn
from jaxpmi.models import resnet
from jaxpmi.models import vit

MODELS = {
    "resnet_small": resnet.resnet_small,
    "resnet32": resnet.resnet32,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "preact_resnet18": resnet.preact_resnet18,
    "preact_resnet34": resnet.preact_resnet34,
    "plain_cnn": plain_cnn.plain_cnn,
    "encoder_decoder": encoder_decoder.encoder_decoder,
    "efficientnet_lite0": efficientnet_lite.efficientnet_lite0,
    "vit_small": vit.vit_small,
    "vit_small_patch7": functools.partial(vit.vit_small, patch_size=7),
}


def make_model(name: str, width: int) -> Any:
    """A backbone by its name: a key of `MODELS`, or `module:name` of a function of the width."""
    return find(name, MODELS, "model.name")(width)
