"""What a network costs: multiply-adds and parameters, counted, not measured."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.extend.core import Jaxpr
from jax.interpreters import partial_eval

from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import forward


def count_multiply_adds(
    model: BlockwiseModel, variables: Variables, image_shape: tuple[int, int, int]
) -> int:
    """Multiply-adds of the convolutions and matrix products behind the features of one image.

    One multiply-add is two floating-point operations; papers often call it one FLOP. Padding counts
    as image, and BatchNorm, activations and pooling as nothing, as is the custom. Layer statistics
    and whatever else the features do not depend on is left out. A convolution that is written as a
    sum of products must have a gradient of its own (`jax.custom_vjp`), or it is not recognised.

    Args:
      model: the backbone, in evaluation mode.
      variables: its parameters, of which only the shapes matter.
      image_shape: (H, W, C).

    Returns:
      The number, of the backbone without a classifier.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda v, x: forward(model, v, x).features)(variables, images)
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return _multiply_adds(needed)


def count_program(function: Callable[..., Any], *inputs: Any) -> int:
    """Multiply-adds of convolutions and matrix products in any traceable function, all loops run.

    The body of a loop whose length is data counts once. Convolutions that are written as sums of
    products count where they are not differentiated.
    """
    return _multiply_adds(jax.make_jaxpr(function)(*inputs).jaxpr)


def count_parameters(tree: Any) -> int:
    """Numbers in a pytree of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _multiply_adds(jaxpr, *, count_products=False):
    """Of a program; `count_products` counts those of arrays as well."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes = [variable.aval.shape for variable in equation.invars]
        outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "conv_general_dilated":
            out_axis = params["dimension_numbers"].rhs_spec[0]
            total += outputs * math.prod(shapes[1]) // shapes[1][out_axis]
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += outputs * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "mul":  # of places to read at, which are whole numbers, older versions too
            is_number = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating)
            total += outputs * (count_products and is_number)
        else:
            repeats = params["length"] if name == "scan" else 1
            # What has a gradient of its own is a convolution: `depthwise_conv` sums products.
            products = count_products or name.startswith("custom_vjp_call")
            inner = (_multiply_adds(part, count_products=products) for part in _inner(params))
            total += repeats * sum(inner)
    return total


def _inner(params):
    """Programs inside an equation: of `jit`, of a function with its own gradient, of a loop."""
    for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
        if isinstance(leaf, Jaxpr | ClosedJaxpr):
            yield getattr(leaf, "jaxpr", leaf)
