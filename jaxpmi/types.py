"""Shape letters and the few types that every module shares.

Shapes are written as JAX prints them, `f32[B, H, W, C]`; the letters never mean anything else:

  B batch         H W pixels       C classes (or colour / feature-map channels after H W)
  D feature width L blocks         S steps          T tasks         K samples per class
"""

from typing import Any
from typing import NamedTuple

import jax

IGNORED_LABEL = 255  # in a label map, of pixels that count nowhere

Params = Any  # pytree of f32 arrays
PRNGKey = jax.Array  # key[], from jax.random.key


class Moments(NamedTuple):
    """Mean and population variance per channel of some activation.

    The same container holds what BatchNorm keeps (running moments), what a batch shows
    (returned by `Block.apply`), and what is stored of a block's input.

    Attributes:
      mean: f32[C].
      var: f32[C], at least 0.
    """

    mean: jax.Array
    var: jax.Array
