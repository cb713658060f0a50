"""A small network learns ten digits from a larger one, on synthetic images alone.

  python launch/run.py --config configs/mnist_distill.py --method cmi

`--method` is one of noise, deep_inversion, adaptive_deep_inversion, cmi, fast_dfkd. The teacher is
trained on the embedded data first, in about half a minute of a CPU; the student then sees no real
image. Results over seeds: docs/results.md.
"""

from jaxpmi.config import AugmentConfig
from jaxpmi.config import CmiConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import DistillConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import TrainConfig


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        job="distill",
        method="cmi",
        workdir="runs/mnist_distill",
        data=DataConfig(tasks=1, augment=AugmentConfig(crop_padding=4)),
        model=ModelConfig(width=8),
        train=TrainConfig(epochs=10),
        deep_inversion=DeepInversionConfig(
            batch_size=64,
            variant="few_steps",
            stage_steps=(100,),
            learning_rate=1.6,
            statistics_weight=1.0,
            statistics_distance="relative",
            competition_weight=1.0,
            total_variation_weight=0.1,
        ),
        cmi=CmiConfig(
            batch_size=64,
            variant="small",
            num_steps=60,
            learning_rate=0.02,
            bank_size=1280,
        ),
        distill=DistillConfig(
            student=ModelConfig(width=4),
            initial_batches=10,
            rounds=10,
            steps_per_round=200,
            batch_size=64,
            learning_rate=0.1,
            warmup_steps=100,
            temperature=4.0,
            augment=AugmentConfig(crop_padding=3),
        ),
    )
