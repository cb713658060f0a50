"""ImageNet-100 at 224 pixels in ten tasks: 100 classes of ILSVRC 2012, ResNet-18.

  python launch/prepare.py imagenet --classes imagenet100.txt --name imagenet100 \\
      --archive ILSVRC2012_img_train.tar --archive ILSVRC2012_img_val.tar --data-dir DATA
  python launch/run.py --config configs/imagenet100.py --data.path DATA

It needs the two archives of https://image-net.org (an account there) and a text file of the 100
class ids to keep (wnids, one a line): the list is not part of this repository, and results on
different lists do not compare. Images are resized to 224 x 224 pixels, not cropped.

PMI has no published settings for ImageNet. Training follows R-DFCIL's ImageNet-100 recipe (batch
64, 120 epochs, x 0.1 at 30 and 60, weight decay 1e-4, heads tuned for the last 30 epochs), the rest
configs/cifar100.py, with fewer images, because 224 x 224 pixels are 49 times CIFAR's.

The ResNet-18 is the CIFAR form: its stem keeps the full resolution, so at 224 pixels it takes far
more memory and time than the usual ImageNet one. `--data.image-size 64` makes a small first try.

Expected result: not measured here, and no published number of PMI + CFS exists to compare with.
Hardware and time: not measured; needs accelerators of large memory.
"""

from jaxpmi.config import AugmentConfig
from jaxpmi.config import CfsConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import TrainConfig

NUM_BLOCKS = 9  # of ResNet-18, stem included


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        seed=1993,  # of the class order of iCaRL, PASS and ImageNet-100: 68, 56, 78, 8, 23, ...
        workdir="runs/imagenet100",
        data=DataConfig(
            source="tfds",
            name="imagenet100",
            image_size=224,
            tasks=10,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augment=AugmentConfig(crop_padding=28, flip=True),
        ),
        model=ModelConfig(name="resnet18", width=64),
        train=TrainConfig(
            batch_size=64,
            replay_batch_size=64,
            epochs=120,
            learning_rate=0.1,
            weight_decay=1e-4,
            schedule="step",
            milestones=(0.25, 0.5),  # epochs 30 and 60
        ),
        losses=MethodConfig(recipe="stagewise", body_learning_rate=0.01, tuning_epochs=0.25),
        cfs=CfsConfig(num_epochs=200),
        inversion=InversionConfig(
            variant="resnet",
            targets="cfs",
            base_images=512,
            images_per_task=512,
            batch_size=64,
            per_layer=PerLayerConfig(
                start="gaussian",
                num_steps=50,
                learning_rate=0.8,
                statistics_weight=0.25 * NUM_BLOCKS * 20,  # alpha_rf x blocks x rf_factor
                block_statistics="measured",
            ),
            full_model=FullModelConfig(num_steps=160, learning_rate=0.4, statistics_weight=0.25),
        ),
    )
