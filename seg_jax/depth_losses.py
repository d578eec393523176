"""Losses of depth: functions of predictions and truth, on the pixels whose depth is known.

Everywhere `depth` is [N, H, W] of any float dtype (the work is done in float32), in metres and
above 0, and `truth` float32 [N, H, W] in metres, 0 where it is not known. Every loss is one float32
scalar over the whole batch, on all devices. Pixels that are not known change neither a loss nor its
gradient; where nothing is, both are 0.
"""

import jax
import jax.numpy as jnp

from seg_jax.errors import UserError, nearest
from seg_jax.losses import quotient
from seg_jax.ops import devices


def l1(depth: jax.Array, truth: jax.Array) -> jax.Array:
  """The mean of |y - y*|."""
  return _mean(_errors(depth, truth), truth)


def berhu(depth: jax.Array, truth: jax.Array) -> jax.Array:
  """The reverse Huber loss (Laina et al. 2016, section 3.2): the mean of B(y - y*).

  B(x) is |x| up to c, and (x^2 + c^2) / (2 c) beyond: smooth there, and small errors keep their
  gradient. c is a fifth of the largest error in the batch, and counts as a constant.
  """
  errors = _errors(depth, truth)
  c = 0.2 * devices.largest(jnp.max(jax.lax.stop_gradient(errors)))
  beyond = quotient(errors**2 + c**2, 2 * c)
  return _mean(jnp.where(errors <= c, errors, beyond), truth)


def scale_invariant(depth: jax.Array, truth: jax.Array, balance: float = 0.5) -> jax.Array:
  """The scale-invariant error in logarithms (Eigen et al. 2014, equation 4), a mean of pictures.

  With d = log y - log y*, a picture costs mean(d^2) - `balance` mean(d)^2. With 0 that is the plain
  squared error, with 1 nothing changes if all of the picture's depths are scaled alike; the paper
  trains half way. Pictures without a known pixel are left out.
  """
  known = truth > 0
  depth = jnp.maximum(depth.astype(jnp.float32), jnp.finfo(jnp.float32).tiny)
  differences = jnp.where(known, jnp.log(depth) - jnp.log(jnp.where(known, truth, 1)), 0)
  count = _picture_sums(known.astype(jnp.float32))
  mean = quotient(_picture_sums(differences), count)
  costs = quotient(_picture_sums(differences**2), count) - balance * mean**2
  pictures = devices.total(jnp.sum((count > 0).astype(jnp.float32)))
  return quotient(devices.total(jnp.sum(costs)), pictures)


LOSSES = {'l1': l1, 'berhu': berhu, 'scale_invariant': scale_invariant}


def named(name: str):
  """The loss that `config.loss.depth` names; `UserError` if there is none."""
  if name not in LOSSES:
    raise UserError(f'loss.depth is {name!r}{nearest(name, LOSSES)}')
  return LOSSES[name]


def _errors(depth, truth):
  """|y - y*|, 0 where nothing is known."""
  difference = depth.astype(jnp.float32) - truth
  size = jnp.maximum(difference, -difference)  # its gradient at 0 is 0, that of JAX's abs is 1
  return jnp.where(truth > 0, size, 0)


def _mean(costs, truth):
  return quotient(devices.pixel_sum(costs), devices.pixel_sum((truth > 0).astype(jnp.float32)))


def _picture_sums(x):
  """`x` [N, H, W] summed over each picture, [N]; along one axis after the other, as `pixel_sum`."""
  for _ in range(2):
    x = jax.lax.optimization_barrier(jnp.sum(x, axis=1))
  return x
