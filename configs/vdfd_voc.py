"""VDFD for class-incremental segmentation of PASCAL VOC 2012: 15 classes, then five of one each.

  python launch/run.py --config configs/vdfd_voc.py --data.path VOC2012

VOC2012 holds JPEGImages/, SegmentationClass/ and ImageSets/, as they come; with
SegmentationClassAug/ and ImageSets/Segmentation/trainaug.txt there are 10,582 training images
instead of 1,464. In the scenes of a task whatever is of another class, old or future, is labelled
background (the overlapped 15-1 protocol of MiB and PLOP); 19-1 is the setting with
--data.tasks 19 1 instead.

VDFD was not published on it. Batch, epochs, schedule and decay are those of MiB and PLOP, the
penalty's weight that of VDFD's Cityscapes; what is kept is that of configs/vdfd_digit_scenes.py,
where it did better than the published mean. The network is a plain encoder-decoder without
pretraining, so that the published figures are no yardstick for it. Hardware and time: not
measured; meant for an accelerator.
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
        workdir="runs/vdfd_voc",
        data=DataConfig(
            source="voc",
            scene_size=(256, 256),
            class_order=tuple(range(20)),
            tasks=(15, 1, 1, 1, 1, 1),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augment=AugmentConfig(crop_padding=32, flip=True),
        ),
        model=ModelConfig(name="encoder_decoder", width=64),
        train=TrainConfig(
            batch_size=24,
            epochs=30,
            optimiser="sgd",
            learning_rate=0.01,
            later_learning_rate=0.001,
            graph_learning_rate=0.001,
            weight_decay=1e-4,
            schedule="polynomial",
        ),
        losses=MethodConfig(
            vdfd=VdfdConfig(
                drift_weight=10.0, rank=4, mean_logits="own_class", regularised_head=True
            ),
        ),
    )
