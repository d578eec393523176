"""Max pooling over windows that do not overlap.

XLA's own gradient of max pooling searches every window again with select-and-scatter. On a CPU that
takes ten times as long as comparing the window's strided slices and remembering the winner.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _slices(x, window):
  """The window's positions as `window**2` arrays [N, H // window, W // window, C], row by row."""
  rows, columns = x.shape[1] // window, x.shape[2] // window
  return [
    x[:, u : rows * window : window, v : columns * window : window]
    for u in range(window)
    for v in range(window)
  ]


def _max_and_position(x, window):
  largest, *others = _slices(x, window)
  position = jnp.zeros(largest.shape, jnp.uint8)
  for k, other in enumerate(others, start=1):
    position = jnp.where(other > largest, jnp.uint8(k), position)  # a tie stays with the first
    largest = jnp.maximum(largest, other)
  return largest, position


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Float[Array, 'N H W C'], window: int = 2) -> Float[Array, 'N h w C']:
  """The largest value of each `window` x `window` block: [N, H // window, W // window, C].

  Rows and columns that do not fill a block are dropped. The gradient goes to the first of equal
  values, as in PyTorch. First-order and reverse mode only.
  """
  return functools.reduce(jnp.maximum, _slices(x, window))


def _forward(x, window):
  largest, position = _max_and_position(x, window)
  return largest, (position, x.shape[1:3])


def _backward(window, residuals, gradient):
  position, (height, width) = residuals
  n, rows, columns, channels = gradient.shape
  parts = [jnp.where(position == k, gradient, 0) for k in range(window**2)]
  bands = [jnp.stack(parts[u * window : (u + 1) * window], 3) for u in range(window)]
  blocks = jnp.stack(bands, 2)  # [N, rows, window, columns, window, C]
  dense = blocks.reshape(n, rows * window, columns * window, channels)
  rest = ((0, 0), (0, height - rows * window), (0, width - columns * window), (0, 0))
  return (jnp.pad(dense, rest),)


max_pool.defvjp(_forward, _backward)
