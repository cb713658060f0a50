"""EfficientNet-Lite0 as a Flax module: the EfficientNet without attention, and with ReLU6.

Reference: the EfficientNet-lite README and `efficientnet_lite_builder.py` of tensorflow/tpu, and
EfficientNet (Tan and Le, 2019). Convolutions are padded as TensorFlow's "SAME".
"""

from flax import nnx

from jaxpmi.models.backbone import Backbone
from jaxpmi.models.inverted_residual import PooledConv
from jaxpmi.models.inverted_residual import Stage
from jaxpmi.models.inverted_residual import Stem
from jaxpmi.models.inverted_residual import inverted_residuals
from jaxpmi.models.inverted_residual import round_channels

STAGES = (
    Stage(1, size=3, stride=1, expansion=1, channels=16),
    Stage(2, size=3, stride=2, expansion=6, channels=24),
    Stage(2, size=5, stride=2, expansion=6, channels=40),
    Stage(3, size=3, stride=2, expansion=6, channels=80),
    Stage(3, size=5, stride=1, expansion=6, channels=112),
    Stage(4, size=5, stride=2, expansion=6, channels=192),
    Stage(1, size=3, stride=1, expansion=6, channels=320),
)
_WIDTH, _FEATURES = 32, 1280


def efficientnet_lite0(
    image_shape: tuple[int, int, int], width: int = 32, *, rngs: nnx.Rngs
) -> Backbone:
    """EfficientNet-Lite0: 18 blocks, 49 BatchNorms, feature 40 x `width`.

    Args:
      image_shape: (H, W, channels).
      width: channels of the stem. The others are scaled with it, to multiples of 8 as by the
        width multiplier of EfficientNet.
      rngs: for the initial weights.
    """
    if width < 1:
        raise ValueError(f"efficientnet_lite0 needs width >= 1, got {width=}.")
    multiplier = width / _WIDTH
    blocks = [
        Stem(image_shape[-1], width, rngs=rngs),
        *inverted_residuals(width, STAGES, multiplier=multiplier, rngs=rngs),
    ]
    channels = round_channels(multiplier * STAGES[-1].channels)
    features = round_channels(multiplier * _FEATURES)
    return Backbone(*blocks, PooledConv(channels, features, rngs=rngs))
