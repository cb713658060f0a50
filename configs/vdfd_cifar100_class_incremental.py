"""VDFD on CIFAR-100 in ten tasks, predicted among all classes, and pre-activation ResNet-18.

  python launch/prepare.py cifar100 --archive cifar-100-python.tar.gz --data-dir DATA
  python launch/run.py --config configs/vdfd_cifar100_class_incremental.py --data.path DATA

Settings are those of the released script (Li et al., TPAMI 2023), except that
  - the penalty is d^T S d - log det S with S = P + epsilon I in both parts, as in the paper;
  - gradients are averaged over images as they are, every one once, and cut to rank 1 exactly;
  - weights begin as those of all networks here do, and the test images are no validation set.
  - the penalty is a sum over all old tasks. The released code has the last one alone, and its
    quadratic form times the square of their number, without epsilon in it: --losses.vdfd.variant
    published_all_classes. The weight was chosen for that one.
Read `last_accuracy`, published 38.69 percent; without self-supervision 31.09, at
--train.head-learning-rate 1e-3 --train.weight-decay 7e-4 --losses.vdfd.no-self-supervision.
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
        workdir="runs/vdfd_cifar100_class_incremental",
        data=DataConfig(
            source="tfds",
            name="cifar100",
            tasks=10,
            class_order=tuple(range(100)),
            mean=(0.507, 0.487, 0.441),
            std=(0.267, 0.256, 0.276),
            augment=AugmentConfig(crop_padding=4, flip=True),
        ),
        model=ModelConfig(name="preact_resnet18", width=64),
        train=TrainConfig(
            batch_size=16,
            epochs=100,
            optimiser="adam",
            learning_rate=1e-4,
            head_learning_rate=5e-3,
            graph_learning_rate=1e-4,
            weight_decay=5e-4,
            graph_weight_decay=5e-4,
            schedule="step",
            milestones=(0.5,),  # epoch 50
            milestone_factor=0.5,
        ),
        losses=MethodConfig(
            vdfd=VdfdConfig(drift_weight=50.0, self_supervision=True, variant="all_classes")
        ),
    )
