"""Half of a network's filters go, and no data is needed: the embedded digits, on any CPU.

  python launch/run.py --config configs/mnist_prune.py

The network is trained on the embedded data first; from then on everything happens on synthetic
images. `--method` as in configs/mnist_distill.py. Results: docs/results.md.
"""

from jaxpmi.config import AugmentConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PruneConfig
from jaxpmi.config import TrainConfig


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        job="prune",
        method="deep_inversion",
        workdir="runs/mnist_prune",
        data=DataConfig(tasks=1, augment=AugmentConfig(crop_padding=4)),
        model=ModelConfig(width=8),
        train=TrainConfig(epochs=10),
        deep_inversion=DeepInversionConfig(
            batch_size=64,
            variant="few_steps",
            stage_steps=(100,),
            learning_rate=1.6,
            statistics_weight=1.0,
            competition_weight=1.0,
            total_variation_weight=0.1,
        ),
        prune=PruneConfig(num_images=1024),
    )
