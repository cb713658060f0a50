"""APR's constants: ours for small images, and those of the released code (docs/methods/apr.md)."""

import dataclasses
from typing import Literal

from jaxpmi.continual.apr.push import Push


@dataclasses.dataclass(frozen=True)
class AprVariant:
    """How old classes are held by images of new ones.

    Attributes:
      replay: how new images are pushed to old means before they are trained on.
      replay_images: the new images nearest to a class's mean that are pushed to it.
      drift: how they are pushed, more gently, to measure what training did to a class.
      drift_images: the same as `replay_images`, for this.
      most_drift_steps: of pushing, while no image of a batch has come to its class.
      calibration: what is fitted from old to new features to move covariances by: ridge: in
        closed form, near the identity; adam: by steps from there, as published.
      shrinkage: g, the weight of the mean variance and of the mean covariance of features.
      shrinks_over: that mean covariance is one over all pairs of features, which keeps a
        covariance positive; or over those that are not 0, as published.
    """

    replay: Push = Push(num_steps=4, step=0.144, noise=1.0)
    replay_images: int = 100
    drift: Push = Push(num_steps=9, step=0.0143, clip=True)
    drift_images: int = 160
    most_drift_steps: int = 99
    calibration: Literal["ridge", "adam"] = "ridge"
    shrinkage: float = 8.0
    shrinks_over: Literal["all", "nonzero"] = "all"


# As released for CIFAR-100; its steps are those of a batch of 64 and are taken by all images of a
# batch together.
_PUBLISHED = AprVariant(
    replay=Push(num_steps=4, step=0.144, noise=1.0, together=True),
    replay_images=200,
    drift=Push(num_steps=9, step=0.0143, clip=True, together=True),
    drift_images=1000,
    calibration="adam",
    shrinkage=24.0,
    shrinks_over="nonzero",
)

APR_VARIANTS = {"standard": AprVariant(), "published": _PUBLISHED}
