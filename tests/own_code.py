"""What a user would write in a file of their own: a learner, a term, a backbone, a network."""

import jax.numpy as jnp
import small_network
from rows import chain
from rows import piece
from rows import sized

from jaxpmi.continual import losses
from jaxpmi.continual.learners import learner
from jaxpmi.inversion.deep_inversion import noise_start
from jaxpmi.inversion.synthetic import as_stored
from jaxpmi.jobs.synthesis import Synthesiser
from jaxpmi.models import resnet
from jaxpmi.optimise.minimise import Solution


def match_features(views, config):
    """Cross-entropy over all seen classes on both batches, features held to the teacher's."""
    del config
    labels, features = views.all_labels(), views.all_features()
    change = views.replay_features - views.teacher_replay_features
    return {
        "own_cross_entropy": losses.masked_cross_entropy(
            views.head(features), labels, views.seen_mask
        ),
        "own_match": 0.1 * jnp.square(change).mean(),
    }


feature_matching = learner(match_features, replay="inversion", joint_batch=True)


def darkness(images):
    """The mean pixel, which a descent makes small."""
    return images.mean()


def row(images):
    """No scalar."""
    return images.mean((1, 2, 3))


def two_blocks(image_shape, width, *, rngs):
    """A backbone by a name of one's own."""
    last = piece(resnet.ResidualBlock, 2 * width, stride=2, pool=True)
    return chain(piece(resnet.Stem, width), last)(image_shape, rngs=rngs)


def no_blocks(image_shape, width, *, rngs):
    """No backbone."""


def six_classes():
    """A network that a factory makes: of the images and classes of `tiny_run`, not trained."""
    return small_network.fresh_network(sized(two_blocks, width=4), num_classes=6)


def nothing():
    """No network."""


def _grey(config, carried, teacher, labels, key, student):
    """Images of one grey: `carried` counts the calls."""
    del config, student
    x = 0.0 * noise_start(labels, key, image_shape=teacher.image_shape)
    solution = Solution(x, jnp.zeros(()), jnp.zeros((0,)), {}, jnp.asarray(True))
    return carried + 1, as_stored(teacher, solution, labels)


grey = Synthesiser(
    batch_size=lambda config: config.deep_inversion.batch_size,
    begin=lambda config, teacher, key: jnp.zeros((), jnp.int32),
    make=_grey,
    adapts=False,
)
