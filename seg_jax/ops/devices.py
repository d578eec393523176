"""Sums over all devices, for programs that are mapped over them by `jax.pmap`.

Under `jax.jit` arrays are global, and a sum over the batch is one over all devices. A mapped
program sees its own device's share, and what it sums has to be summed over the axis `data` besides.
These functions do so where that axis is there, and nothing elsewhere, so that losses and measures
are written once.

Each device of a mapped program then differentiates the same global loss, and its gradient is that
of all copies: the mean over the devices is the gradient of the loss.
"""

import jax
import jax.numpy as jnp
from jax import lax

AXIS = 'data'


def axis_name() -> str | None:
  """The axis that the program being traced is mapped over; None under `jit` alone."""
  try:
    lax.axis_size(AXIS)
  except NameError:
    return None
  return AXIS


def total(x: jax.Array) -> jax.Array:
  """`x` summed over the devices, each of which has summed its share."""
  return lax.psum(x, AXIS) if axis_name() else x


def pixel_sum(x: jax.Array) -> jax.Array:
  """`x` [N, H, W, ...] summed over the pixels, of all devices.

  Along one axis after the other, which the barrier keeps XLA from joining: a single float32 sum
  over all pixels is wrong in the fifth digit.
  """
  for _ in range(3):
    x = lax.optimization_barrier(jnp.sum(x, axis=0))
  return total(x)


def largest(x: jax.Array) -> jax.Array:
  """The largest `x` of the devices, each of which has that of its share; no gradient."""
  return lax.pmax(x, AXIS) if axis_name() else x


def mean(tree):
  """The mean over the devices, of each leaf."""
  return lax.pmean(tree, AXIS) if axis_name() else tree


def whole_batch(x: jax.Array) -> jax.Array:
  """`x` [N, ...] of all devices, along its first axis, in their order."""
  return lax.all_gather(x, AXIS, tiled=True) if axis_name() else x


def own_share(x: jax.Array, axis: int) -> jax.Array:
  """This device's share of `x`, which is that of the whole batch along `axis`."""
  if not axis_name():
    return x
  size = x.shape[axis] // lax.axis_size(AXIS)
  return lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * size, size, axis)


def num_mapped() -> int:
  """Over how many devices the program is mapped; 1 under `jit` alone."""
  return lax.axis_size(AXIS) if axis_name() else 1


def key_of_share(key: jax.Array) -> jax.Array:
  """A key of this device's own, for noise that differs between the shares of a batch."""
  return jax.random.fold_in(key, lax.axis_index(AXIS)) if axis_name() else key
