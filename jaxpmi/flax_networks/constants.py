"""Arrays of a module that are never trained, as static data of its block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array by value: those of the same numbers are equal, so blocks that have them are, too.

    Attributes:
      dtype: of the array.
      shape: the same.
      data: its bytes.
      is_numpy: it was NumPy's, and is NumPy's again; it may say a shape, say.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    data: bytes = dataclasses.field(repr=False)
    is_numpy: bool

    @classmethod
    def of(cls, array: jax.Array | np.ndarray) -> "Constant":
        """The constant of an array."""
        values = np.asarray(array)
        return cls(values.dtype, values.shape, values.tobytes(), isinstance(array, np.ndarray))

    def array(self) -> jax.Array | np.ndarray:
        """The array."""
        values = np.frombuffer(self.data, self.dtype).reshape(self.shape)
        return values if self.is_numpy else jnp.asarray(values)
