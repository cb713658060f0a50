"""Ten digits in five tasks as the published codes learn them: their epochs, schedules, inversion.

  python launch/run.py --config configs/mnist_published.py

PMI as released: stages of training, the product of two losses, block inputs from Gaussians, by
affine statistics. No crops, 40 epochs a task, a rate that falls in steps. For ABD and R-DFCIL the
rest of their settings is in the commands of docs/results.md, with the results.
"""

from jaxpmi.config import Config
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import TrainConfig


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        workdir="runs/mnist_published",
        train=TrainConfig(epochs=40, schedule="step", milestones=(0.4, 0.6)),
        losses=MethodConfig(recipe="published", body_learning_rate=0.01),
        inversion=InversionConfig(
            variant="resnet",
            images_per_task=120,
            batch_size=120,
            per_layer=PerLayerConfig(
                start="gaussian", num_steps=50, learning_rate=0.8, block_statistics="affine"
            ),
            full_model=FullModelConfig(num_steps=160, learning_rate=0.4),
        ),
    )
