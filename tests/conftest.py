"""Eight virtual CPU devices, and JAX's own checks switched on for every test."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
