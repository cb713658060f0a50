"""A network without its classifier, as a Flax module of blocks in a row."""

import jax
from flax import nnx

from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.flax_networks.containers import ModuleList


class Backbone(nnx.Module):
    """Blocks in a row; the last one's output is the feature f32[B, D], or f32[B, H, W, D].

    Attributes:
      statistics_of: kinds of layers of the input of which the moments are kept; static.
      statistics_axis: per what these and the moments of a block's input are kept; static.
    """

    def __init__(
        self,
        *blocks: nnx.Module | list[nnx.Module],
        statistics_of: tuple[type, ...] = (nnx.BatchNorm,),
        statistics_axis: StatisticsAxis = "channel",
    ):
        """Takes the blocks; a list of equal modules is a stack of them, which runs as one scan."""
        self.num_blocks = len(blocks)
        self.statistics_of, self.statistics_axis = statistics_of, statistics_axis
        for i, block in enumerate(blocks):
            stack = isinstance(block, list)
            setattr(self, block_name(i), ModuleList(block) if stack else block)

    @property
    def blocks(self) -> tuple[nnx.Module | ModuleList, ...]:
        """The blocks, from the one that takes images on."""
        return tuple(getattr(self, block_name(i)) for i in range(self.num_blocks))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features of normalised images f32[B, H, W, C]."""
        for block in self.blocks:
            for module in block if isinstance(block, ModuleList) else [block]:
                x = module(x)
        return x
