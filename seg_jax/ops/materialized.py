"""What a function gives, stored before it is read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def materialized(function: Callable, *operands):
  """`function(*operands)`, arrays or trees of them; what goes in and comes out is stored.

  XLA stores it around a branch. Otherwise it computes what is cheap anew for each of its readers,
  of which there may be many; an optimization barrier does not keep it from that. The branch asks
  for a value of the first array, which has to be of floats, not empty, and, so that devices need
  not exchange it, whole on all of them.
  """
  array = jax.tree.leaves(operands)[0]
  value = array[(0,) * array.ndim]
  never = (value != value) & (value == value)  # XLA does not see that this is always false
  results = jax.eval_shape(function, *operands)
  return lax.cond(
    never,
    lambda *_: jax.tree.map(lambda result: jnp.zeros(result.shape, result.dtype), results),
    function,
    *operands,
  )
