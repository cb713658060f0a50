"""A small network learns ten digits from a larger one, on synthetic images alone.

  python launch/run.py --config configs/mnist_distill.py --method cmi

`--method` is one of noise, deep_inversion, adaptive_deep_inversion, cmi, fast_dfkd. The teacher is
trained on the embedded data first, in about half a minute of a CPU; the student then sees no real
image. Results over seeds: README.md.
"""

from jaxpmi.config import AugmentConfig
from jaxpmi.config import Config
from jaxpmi.config import ContrastiveInversionConfig
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
        data=DataConfig(num_tasks=1, augment=AugmentConfig(crop_padding=4)),
        model=ModelConfig(width=8),
        train=TrainConfig(epochs=10),
        deep_inversion=DeepInversionConfig(
            batch_size=128,
            stage_steps=(200,),
            competition_weight=1.0,
            total_variation_norm="l1",
            total_variation_weight=1e-3,
        ),
        contrastive_inversion=ContrastiveInversionConfig(
            batch_size=128,
            num_steps=60,
            latent_dim=64,
            channels=(32, 32, 16),
            projection_dim=64,
            bank_size=5120,
            num_negatives=512,
        ),
        distill=DistillConfig(
            student=ModelConfig(width=4),
            rounds=40,
            steps_per_round=50,
            learning_rate=0.05,
            temperature=4.0,
        ),
    )
