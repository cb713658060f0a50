"""Built-in networks by name: a plain dict of what makes them."""

import functools
import inspect
from typing import Any

from flax import nnx

from jaxpmi.lookup import find
from jaxpmi.models import efficientnet_lite
from jaxpmi.models import encoder_decoder
from jaxpmi.models import imagenet_resnet
from jaxpmi.models import mobilenet_v2
from jaxpmi.models import plain_cnn
from jaxpmi.models import resnet
from jaxpmi.models import vgg
from jaxpmi.models import vit

# Each is called as `(image_shape, width, *, rngs)` and returns a `Backbone`.
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
    # Networks of ImageNet, as the zoos have them; `load_weights` reads their weights.
    "imagenet_resnet18": functools.partial(imagenet_resnet.imagenet_resnet, depth=18),
    "imagenet_resnet34": functools.partial(imagenet_resnet.imagenet_resnet, depth=34),
    "imagenet_resnet50": functools.partial(imagenet_resnet.imagenet_resnet, depth=50),
    "imagenet_resnet101": functools.partial(imagenet_resnet.imagenet_resnet, depth=101),
    "imagenet_resnet152": functools.partial(imagenet_resnet.imagenet_resnet, depth=152),
    "mobilenet_v2": mobilenet_v2.mobilenet_v2,
    "mobilenet_v2_tf": mobilenet_v2.mobilenet_v2_tf,
    "vgg11": functools.partial(vgg.vgg, depth=11),
    "vgg16": functools.partial(vgg.vgg, depth=16),
    "vit_patch16": functools.partial(vit.vit, patch_size=16),
    "vit_patch32": functools.partial(vit.vit, patch_size=32),
}


def architecture(name: str, width: int) -> Any:
    """What makes a backbone of that name: a key of `MODELS`, or one's own as `module:name`.

    It is called as `(image_shape, *, rngs)`, see `init_network`.

    Raises:
      ValueError: there is nothing of that name, or it cannot be called so.
    """
    function = find(name, MODELS, "model.name")
    try:
        inspect.signature(function).bind((1, 1, 1), width, rngs=None)
    except TypeError as error:
        raise ValueError(
            f"model.name='{name}' cannot be called as it will be, with image_shape, width and "
            f"rngs=...: {error}; give a function of these that returns a jaxpmi.Backbone."
        ) from error
    return functools.partial(_make, function, width)


def _make(function: Any, width: int, image_shape: tuple[int, int, int], *, rngs: nnx.Rngs) -> Any:
    return function(image_shape, width, rngs=rngs)
