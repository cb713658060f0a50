"""CUB-200-2011, kinds of birds, in ten tasks with CLIP ViT-B/16 and the published PMI + CFS.

  python launch/prepare.py cub200 --archive CUB_200_2011.tgz --data-dir DATA
  python launch/run.py --config configs/clip_cub.py --data.path DATA --model.weights FOLDER

The weights, OpenAI's ViT-B/16, are a folder of Hugging Face's (openai/clip-vit-base-patch16) or of
open_clip, or a file with OpenAI's names, each with its tokenizer.json; see `jaxpmi.load_clip`.
The archive is that of https://www.vision.caltech.edu/datasets/cub_200_2011.

Its own split is used, 5,994 images for training and 5,794 for testing; the published runs may have
another. Class names are its folders' without number and underscores. Images are stored as 224 x 224
pixels, their short side resized and the centre cut out, so random views are views of that centre.

Settings are those of the released code (Tong et al., NeurIPS 2025) with the exceptions listed in
configs/clip_cifar100.py; of a class up to 6 samples are made, out of 120 drawn by CFS, not 5 out of
100. It has no open-set run on these classes.

Expected result: not measured here; the published accuracies on CLIP were not at hand.
Hardware and time: not measured; meant for one or more accelerators, too long for a CPU. Replay
takes 0.6 MB a sample, 0.6 GB before the last task. The command has been run to its end with a small
CLIP of random weights on a few images only.
"""

import numpy as np

from jaxpmi.config import AugmentConfig
from jaxpmi.config import CfsConfig
from jaxpmi.config import ClipConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import TrainConfig

NUM_CLASSES, NUM_TASKS = 200, 10
NUM_BLOCKS = 15  # of ViT-B/16: patches, tokens, 12 transformer blocks, head
ALPHA = 0.2  # alpha_rf, of all statistics losses

# The published order: numpy's permutation after seed 1993, for every seed of the run.
CLASS_ORDER = tuple(np.random.RandomState(1993).permutation(NUM_CLASSES).tolist())


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        workdir="runs/clip_cub",
        data=DataConfig(
            source="tfds",
            name="cub200_2011",
            image_size=224,
            tasks=NUM_TASKS,
            class_order=CLASS_ORDER,
            augment=AugmentConfig(crop_scale=(0.9, 1.0)),  # open_clip's, bicubic, no flip
        ),
        model=ModelConfig(name="clip", weights="clip-vit-base-patch16"),
        train=TrainConfig(
            epochs=10,
            batch_size=64,
            replay_batch_size=64,
            optimiser="adamw",
            learning_rate=1e-3,
            weight_decay=0.0,
            warmup_steps=30,
        ),
        losses=MethodConfig(
            ce_weight=1.0,
            hkd_weight=0.1,
            tkd_weight=0.1,
            ft_weight=0.1,
        ),
        clip=ClipConfig(
            variant="corrected",
            templates=("a bad photo of a {}.",),
        ),
        cfs=CfsConfig(
            learning_rate=1e-2,
            num_epochs=200,
            num_rounds=5,
            keep_rate=0.5,
            oversampling=20,  # boost
        ),
        inversion=InversionConfig(
            variant="published_clip",
            targets="cfs",
            images_per_task=5 * NUM_CLASSES // NUM_TASKS,  # 5 of every class
            batch_size=40,
            per_layer=PerLayerConfig(
                start="gaussian",
                num_steps=200,
                learning_rate=0.1,
                statistics_weight=ALPHA * NUM_BLOCKS,  # alpha_rf x blocks x rf_factor of 1
                block_statistics="measured",
                coarse_to_fine_steps=1200,
            ),
            full_model=FullModelConfig(
                num_steps=600,
                learning_rate=0.02,
                statistics_weight=ALPHA,
                total_variation_weight=0.005,  # alpha_pr
            ),
        ),
    )
