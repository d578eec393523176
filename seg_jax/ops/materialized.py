"""What a function gives, stored before it is read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def materialized(function: Callable, *operands):
  """`function(*operands)`, arrays or trees of them, of which the first is of floats; in a branch.

  XLA stores what goes in and out of a branch. Otherwise it computes what is cheap anew for each of
  its readers, of which there may be many; an optimization barrier does not keep it from that.
  """
  value = jax.tree.leaves(operands)[0].ravel()[0]
  never = (value != value) & (value == value)  # of which XLA does not see that it is
  results = jax.eval_shape(function, *operands)
  return lax.cond(
    never,
    lambda *_: jax.tree.map(lambda result: jnp.zeros(result.shape, result.dtype), results),
    function,
    *operands,
  )
