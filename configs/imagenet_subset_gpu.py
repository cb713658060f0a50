"""Pictures of 100 classes out of a real ImageNet network, and new ones learnt with them: on a GPU.

  python launch/run.py --config configs/imagenet_subset_gpu.py

configs/imagenet_subset.py says what happens, and has the options. Here pictures have 224 pixels,
1,000 steps at half the resolution and 500 in full, in batches of 80; and the whole network learns
the new classes.

Expected result, hardware and time: not measured yet.
"""

from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import InvertConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import TrainConfig

CLASSES = tuple(str(label) for label in range(0, 1000, 10))


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        job="invert",
        method="deep_inversion",
        workdir="runs/imagenet_subset_gpu",
        data=DataConfig(image_size=224, tasks=1),
        model=ModelConfig(name="efficientnet_lite0", width=32, weights="imagenet"),
        train=TrainConfig(
            epochs=10, batch_size=64, replay_batch_size=64, learning_rate=0.01, weight_decay=1e-4
        ),
        deep_inversion=DeepInversionConfig(
            batch_size=80,
            stage_steps=(1000, 500),
            variant="photographs",
            learning_rate=0.1,
            cross_entropy_weight=3.0,
            statistics_weight=1.0,
            statistics_distance="relative",
            total_variation_weight=0.0,
            jitter_pixels=30,
            flip=True,
        ),
        inversion=InversionConfig(
            per_layer=PerLayerConfig(
                start="gaussian",
                num_steps=10,
                block_statistics="propagated",
                coarse_to_fine_steps=10,  # smooth pictures to begin with, not white noise
            )
        ),
        invert=InvertConfig(classes=CLASSES, images_per_class=20, learn_data=True),
    )
