"""VDFD on the embedded digits: ten classes in five tasks with the task given, on any CPU.

  python launch/run.py --config configs/vdfd_mnist.py

Read `task_accuracy` and `task_backward_transfer` in summary.json. The network has no BatchNorm,
whose running statistics the method does not hold. Gradients are kept of every weight; with averages
over the weights of a channel, as published (--losses.vdfd.variant task_given), classifiers of old
tasks drift. Results over seeds: docs/results.md.
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
        workdir="runs/vdfd_mnist",
        data=DataConfig(augment=AugmentConfig(crop_padding=2)),
        model=ModelConfig(name="plain_cnn", width=16),
        train=TrainConfig(
            batch_size=32,
            epochs=15,
            optimiser="adam",
            learning_rate=1e-3,
            head_learning_rate=5e-3,
            graph_learning_rate=5e-4,
            weight_decay=5e-5,
            graph_weight_decay=5e-4,
            schedule="step",
            milestones=(0.375, 0.75),
            milestone_factor=0.5,
        ),
        losses=MethodConfig(vdfd=VdfdConfig(drift_weight=1.0, variant="whole_gradients")),
    )
