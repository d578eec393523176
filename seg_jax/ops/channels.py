"""One number a channel, from all pixels and for all pixels: each is the other's gradient.

Norms and depthwise kernels sum over all pixels of a batch, forwards or backwards. On a CPU, XLA's
sum of what it has yet to compute goes value by value, up to ten times as long as reading the map
takes; here rows are added up by a matrix product there. Forward-mode derivatives are given up for
it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def sums(x: Float[Array, 'N H W C']) -> Float[Array, ' C']:
  """The sum of each channel, in float32."""
  return _sums(x, x.shape, x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def spread(values: Float[Array, ' C'], shape: tuple[int, int, int, int]) -> Float[Array, 'N H W C']:
  """`values`, float32, at each pixel of `shape`."""
  return jnp.broadcast_to(values, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _sums(x, shape, dtype):
  return lax.platform_dependent(x, cpu=_row_by_row, default=_plain)


def _plain(x):
  return x.sum((0, 1, 2), dtype=jnp.float32)


def _row_by_row(x):
  _, rows, columns, channels = x.shape
  pictures = x.sum(0, dtype=jnp.float32).reshape(rows, columns * channels)
  return (jnp.ones(rows) @ pictures).reshape(columns, channels).sum(0)


_sums.defvjp(
  lambda x, shape, dtype: (_sums(x, shape, dtype), None),
  lambda shape, dtype, _, gradient: (spread(gradient, shape).astype(dtype),),
)
spread.defvjp(
  lambda values, shape: (spread(values, shape), None), lambda shape, _, gradient: (sums(gradient),)
)
