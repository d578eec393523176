"""Ways back up without parameters: nearest, bed of nails, and SegNet's with pooling's positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from seg_jax.ops.pooling import Pair, Windows, place


def unpool_nearest(x: Float[Array, 'N H W C'], factor: Pair = 2) -> Float[Array, 'N fH fW C']:
  """Each value as a block of `factor` (rows, columns) pixels; its gradient is the block's sum."""
  n, height, width, channels = x.shape
  rows, columns = (factor, factor) if isinstance(factor, int) else factor
  blocks = jnp.broadcast_to(x[:, :, None, :, None], (n, height, rows, width, columns, channels))
  return blocks.reshape(n, height * rows, width * columns, channels)


def unpool_bed_of_nails(x: Float[Array, 'N H W C'], factor: Pair = 2) -> Float[Array, 'N fH fW C']:
  """Each value at the upper left corner of a block of `factor` (rows, columns) zeros."""
  rows, columns = (factor, factor) if isinstance(factor, int) else factor
  # Low, high and interior padding of each axis.
  margins = ((0, 0, 0), (0, rows - 1, rows - 1), (0, columns - 1, columns - 1), (0, 0, 0))
  return jax.lax.pad(x, jnp.zeros((), x.dtype), margins)


def max_unpool(
  x: Float[Array, 'N h w C'],
  positions: UInt8[Array, 'N h w C'],
  size: tuple[int, int],
  window: Pair = 2,
  stride: Pair | None = None,
  padding: Pair = 0,
) -> Float[Array, 'N H W C']:
  """Each value where the encoder's maximum stood, zeros elsewhere (SegNet, figure 3).

  `positions` and the other arguments are those of `max_pool_with_argmax`, `size` is (H, W) of the
  map that it pooled, odd or not. Sparse maps, which SegNet's decoder makes dense by convolutions.
  First-order and reverse mode only.
  ValueError: windows that overlap (two could claim one pixel, which in PyTorch has the value that
  happens to be written last), or shapes that are not what pooling a map of `size` gives.
  """
  windows = Windows.of(window, stride, padding, 1)
  if windows.overlap:
    raise ValueError(f'max_unpool is for windows that do not overlap: {windows}')
  pooled = windows.output_size(size)
  if x.shape != positions.shape or x.shape[1:3] != pooled:
    raise ValueError(
      f'values {x.shape}, positions {positions.shape}: pooling {size} gives {pooled} windows'
    )
  return place(x, positions, size, windows)
