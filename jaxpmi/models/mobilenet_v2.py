"""MobileNetV2 as a Flax module (Sandler et al., 2018), as torchvision and timm have it.

`mobilenet_v2_tf` is the network as TensorFlow trained it and transformers has it: padded as "SAME",
with a larger epsilon of its BatchNorms.
"""

from flax import nnx

from jaxpmi.models import layers
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.inverted_residual import EPSILON
from jaxpmi.models.inverted_residual import Padding
from jaxpmi.models.inverted_residual import PooledConv
from jaxpmi.models.inverted_residual import Stage
from jaxpmi.models.inverted_residual import Stem
from jaxpmi.models.inverted_residual import inverted_residuals
from jaxpmi.models.inverted_residual import round_channels

STAGES = (
    Stage(1, size=3, stride=1, expansion=1, channels=16),
    Stage(2, size=3, stride=2, expansion=6, channels=24),
    Stage(3, size=3, stride=2, expansion=6, channels=32),
    Stage(4, size=3, stride=2, expansion=6, channels=64),
    Stage(3, size=3, stride=1, expansion=6, channels=96),
    Stage(3, size=3, stride=2, expansion=6, channels=160),
    Stage(1, size=3, stride=1, expansion=6, channels=320),
)
_WIDTH, _FEATURES = 32, 1280


def mobilenet_v2(
    image_shape: tuple[int, int, int],
    width: int = 32,
    *,
    padding: Padding = "symmetric",
    epsilon: float = layers.BATCH_NORM_EPSILON,
    rngs: nnx.Rngs,
) -> Backbone:
    """MobileNetV2: 19 blocks, 52 BatchNorms, feature 1280, or 40 x `width` if that is more.

    Args:
      image_shape: (H, W, channels).
      width: channels of the stem. The others are scaled with it, to multiples of 8.
      padding: of all convolutions.
      epsilon: of all BatchNorms.
      rngs: for the initial weights.
    """
    if width < 1:
        raise ValueError(f"mobilenet_v2 needs width >= 1, got {width=}.")
    multiplier = width / _WIDTH
    kind = {"padding": padding, "epsilon": epsilon}
    stem = Stem(image_shape[-1], width, rngs=rngs, **kind)
    blocks = inverted_residuals(width, STAGES, multiplier=multiplier, rngs=rngs, **kind)
    channels = round_channels(multiplier * STAGES[-1].channels)
    features = round_channels(max(multiplier, 1.0) * _FEATURES)
    return Backbone(stem, *blocks, PooledConv(channels, features, epsilon=epsilon, rngs=rngs))


def mobilenet_v2_tf(
    image_shape: tuple[int, int, int], width: int = 32, *, rngs: nnx.Rngs
) -> Backbone:
    """`mobilenet_v2` with TensorFlow's padding and epsilon."""
    return mobilenet_v2(image_shape, width, padding="SAME", epsilon=EPSILON, rngs=rngs)
