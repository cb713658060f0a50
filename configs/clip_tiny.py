"""A small CLIP learns coloured digits task by task, and some classes by their names alone.

  python launch/run.py --config configs/clip_tiny.py

No weights are needed: the CLIP is trained in the run on 20 of 40 classes such as "red three".
Twelve others are learnt in four tasks through adapters, eight have only a name.
"""

from jaxpmi.config import AugmentConfig
from jaxpmi.config import ClipConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import NameOnlyConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import TrainConfig


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        workdir="runs/clip_tiny",
        data=DataConfig(source="coloured_digits", tasks=4, augment=AugmentConfig(crop_padding=2)),
        model=ModelConfig(name="clip"),
        train=TrainConfig(
            epochs=30, optimiser="adamw", learning_rate=1e-3, weight_decay=0.0, warmup_steps=10
        ),
        losses=MethodConfig(
            ce_weight=1.0, hkd_weight=1.0, tkd_weight=0.2, ft_weight=1.0, joint_weight=1.0
        ),
        clip=ClipConfig(
            templates=("a photo of a {}.", "a {} digit."),
            name_only=NameOnlyConfig(
                classes=8,
                images_per_class=40,
                epochs=15,
                learning_rate=1e-3,
            ),
        ),
        inversion=InversionConfig(
            images_per_task=120,
            batch_size=120,
            # Layouts, which the classes with only a name have none of, were not measured here.
            per_layer=PerLayerConfig(start="inverse"),
            full_model=FullModelConfig(
                num_steps=60,
                statistics_weight=0.125,
                total_variation_weight=0.03,
                pixel_statistics_weight=1.0,
            ),
        ),
    )
