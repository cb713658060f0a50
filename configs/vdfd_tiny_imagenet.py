"""VDFD on Tiny-ImageNet in 25 tasks with the task given, and pre-activation ResNet-18.

  python launch/prepare.py tiny_imagenet --archive tiny-imagenet-200.zip --data-dir DATA
  python launch/run.py --config configs/vdfd_tiny_imagenet.py --data.path DATA

Settings are those of the released script (Li et al., TPAMI 2023), except that
  - the penalty is d^T S d - log det S with S = P + epsilon I in both parts, as in the paper;
  - gradients are averaged over images as they are, every one once, and cut to rank 1 exactly;
  - weights begin as those of all networks here do, and the test images are no validation set.
Read `task_accuracy` and `task_backward_transfer`, published 60.58 and -4.60 percent;
65.99 and -2.35 with --losses.vdfd.self-supervision, whose script was not released.
Hardware and time: not measured; meant for an accelerator.
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
        workdir="runs/vdfd_tiny_imagenet",
        data=DataConfig(
            source="tfds",
            name="tiny_imagenet",
            tasks=25,
            class_order=tuple(range(200)),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augment=AugmentConfig(crop_padding=4, flip=True),
        ),
        model=ModelConfig(name="preact_resnet18", width=64),
        train=TrainConfig(
            batch_size=16,
            epochs=80,
            optimiser="adam",
            learning_rate=5e-5,
            head_learning_rate=5e-3,
            graph_learning_rate=5e-4,
            weight_decay=1e-5,
            graph_weight_decay=5e-5,
            schedule="step",
            milestones=(0.375, 0.75),  # epochs 30 and 60
            milestone_factor=0.5,
        ),
        losses=MethodConfig(vdfd=VdfdConfig(drift_weight=100.0)),
    )
