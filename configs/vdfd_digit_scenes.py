"""VDFD for semantic segmentation: four digits, then one and one, on scenes of three.

  python launch/run.py --config configs/vdfd_digit_scenes.py

In the scenes of a task only its own digits are labelled; all others, old and future, count as
background. A record is of every class's logit over the pixels of that class: a mean over all
pixels, as we read the paper, is one over background. Read `last_miou` and `backward_transfer` in
summary.json, and look at images/, where test scenes stand beside their true and predicted labels.
Results over seeds: docs/results.md.

  python launch/run.py --config configs/vdfd_digit_scenes.py --data.scene-tasks domains

instead changes the grounds under the digits (black, white, noise, stripes), all digits labelled
in all tasks, as Cityscapes changes cities; it needs --data.tasks 4, or
--data.tasks 2 1 1 --data.class-order black noise stripes white for black and noise, then stripes,
then white.
"""

from jaxpmi.config import AugmentConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import TrainConfig
from jaxpmi.config import VdfdConfig


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        method="vdfd",
        workdir="runs/vdfd_digit_scenes",
        data=DataConfig(
            source="digit_scenes",
            scene_size=(32, 32),
            num_scenes=1500,
            num_classes=6,
            tasks=(4, 1, 1),
            augment=AugmentConfig(crop_padding=2),
        ),
        model=ModelConfig(name="encoder_decoder", width=16),
        train=TrainConfig(
            batch_size=8,
            epochs=4,
            optimiser="adam",
            learning_rate=3e-3,
            later_learning_rate=1e-3,
            head_learning_rate=1e-2,
            warmup_steps=40,
            graph_learning_rate=5e-4,
            weight_decay=0.0,
            schedule="cosine",
        ),
        losses=MethodConfig(
            vdfd=VdfdConfig(
                drift_weight=10.0,
                rank=4,
                mean_logits="own_class",
                regularised_head=True,
                record_images=400,
            ),
        ),
    )
