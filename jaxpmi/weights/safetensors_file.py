"""A network's arrays for other programs, as safetensors; `save_network` is for jaxpmi itself."""

import json
import os

import jax
import numpy as np

from jaxpmi.network import Network
from jaxpmi.runs.writers.files import replace_file
from jaxpmi.weights.network_file import arrays_by_name


def export_safetensors(network: Network, path: str | os.PathLike) -> None:
    """Writes all arrays of a network by their paths, `variables/params/block00/conv/kernel` or so.

    `head/kernel` f32[D, C] is the classifier, `mean` and `std` f32[channels] are those of pixels in
    [0, 1]: `(pixels / 255 - mean) / std` goes into the first block. The file's metadata are texts
    of JSON: `class_names`, in the order of the logits, and `image_shape` (H, W, channels). The
    file is complete or not there.

    Raises:
      OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    arrays = {
        name: np.asarray(array, order="C")
        for name, array in arrays_by_name(jax.device_get(network)).items()
    }
    metadata = {
        "format": "jaxpmi",
        "class_names": json.dumps(network.class_names),
        "image_shape": json.dumps(network.image_shape),
    }
    content = save(arrays, metadata)
    with replace_file(path) as file:
        file.write(content)
