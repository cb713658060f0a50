"""Images drawn by integer arithmetic, so that they are the same pixels everywhere."""

import numpy as np


def draw_image(size: int, seed: int) -> np.ndarray:
    """uint8[size, size, 3]: ramps of colour that wrap around, bent, with a disc on them."""
    y, x = np.mgrid[:size, :size] * 224 // size
    image = np.stack([(3 + seed) * x + c * y + x * y // (30 + 9 * c + seed) for c in range(3)], -1)
    disc = (x - 90 - 10 * seed) ** 2 + (y - 110) ** 2 < 60**2
    image[disc] = image[disc] // 4 + 70 * np.arange(3)
    return (image % 256).astype(np.uint8)
