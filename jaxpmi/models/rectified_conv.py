"""What a convolution, its BatchNorm and a ReLU share, whatever pooling follows them."""

import jax
from flax import nnx

from jaxpmi.blocks.channels import ChannelAxes
from jaxpmi.models import layers
from jaxpmi.types import Moments


class RectifiedConv(nnx.Module):
    """conv - BN - ReLU; a subclass makes `conv` and `bn`, and pools in its call."""

    conv: nnx.Conv
    bn: nnx.BatchNorm

    def rectified(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H / stride, W / stride, channels]."""
        return nnx.relu(self.bn(self.conv(x)))

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        return ChannelAxes({"conv": ("in", "out"), "bn": ("out",)}, tied=False)

    def propagate(self, moments: Moments | None) -> Moments:
        """Output moments without data: of a rectified Gaussian (`None`: before the ReLU).

        What a maximum does to them depends on how alike neighbours are, and is left out.
        """
        normalised = layers.normalised_moments(self.bn)
        return normalised if moments is None else layers.clipped_moments(normalised)
