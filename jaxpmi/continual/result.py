"""What a run leaves to be used elsewhere: its network, in one file, after every task."""

from pathlib import Path

import jax
import numpy as np

from jaxpmi.config import ModelConfig
from jaxpmi.continual.run import Run
from jaxpmi.continual.state import ContinualState
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.mahalanobis import nearest_mean_kernel
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.pruning import Kept
from jaxpmi.runs.phases import NonFiniteLossError
from jaxpmi.runs.writers import tell
from jaxpmi.weights.network_file import save_network

NETWORK_FILE = "network.npz"  # in the workdir


def save_seen(run: Run, state: ContinualState, folder: Path) -> dict[str, str]:
    """Writes the network of all tasks so far, with the classes that it has seen; names its file.

    A class that has yet to come is no answer of it, as it is none when it is evaluated. A network
    of one's own that a file cannot describe stops no run: that is said on the console.
    """
    seen = run.stream.task_classes(int(state.task) - 1).stop
    network = jax.device_get(state.network)
    if isinstance(state.memory, ClassStats):  # of what tells classes apart the part that is linear
        network = network.replace(head=Head(np.asarray(nearest_mean_kernel(state.memory))))
    network = with_first_classes(network, seen)
    order = np.asarray(state.class_order)[:seen].tolist()
    try:
        kept = None if run.given is None else run.given.kept
        return save_result(folder, network, run.config.model, kept, class_order=order)
    except ValueError as error:
        tell(f"no {NETWORK_FILE}: {error}")
        return {"network_file": None}


def with_first_classes(network: Network, count: int) -> Network:
    """A network that tells the first so many of its classes apart; its arrays are numpy's."""
    bias = network.head.bias
    head = network.head._replace(
        kernel=network.head.kernel[:, :count], bias=None if bias is None else bias[:count]
    )
    return network.replace(head=head, class_names=network.class_names[:count])


def save_result(
    folder: Path,
    network: Network,
    config: ModelConfig,
    kept: Kept | None = None,
    *,
    class_order: list[int] | None = None,
) -> dict[str, str]:
    """Writes the network that a job has come to, see `save_network`; names its file.

    Raises:
      NonFiniteLossError: a weight is no number, which the last step of a task may do unseen.
    """
    network = jax.device_get(network)
    for path, leaf in jax.tree_util.tree_leaves_with_path(network):
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise NonFiniteLossError(
                f"the network's {name} became NaN or infinite; the last good checkpoint is kept, "
                "lower the learning rate."
            )
    save_network(folder / NETWORK_FILE, network, config, kept, class_order=class_order)
    return {"network_file": NETWORK_FILE}
