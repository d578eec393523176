"""Max and mean pooling over any windows, and where in its window each maximum stood.

As in PyTorch: windows begin `padding` pixels before the first row and column, and a window that
would end after the padding is dropped (floor mode). A window's pixels are numbered row by row.

XLA's own gradient of max pooling searches every window again with select-and-scatter. On a CPU that
takes ten times as long as comparing the window's strided slices and remembering the winner.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

Pair = int | tuple[int, int]


class Windows(NamedTuple):
  """Where the windows lie; each field is (rows, columns)."""

  size: tuple[int, int]
  stride: tuple[int, int]
  padding: tuple[int, int]
  dilation: tuple[int, int]

  @classmethod
  def of(cls, window: Pair, stride: Pair | None, padding: Pair, dilation: Pair) -> 'Windows':
    stride = window if stride is None else stride
    pairs = (
      (n, n) if isinstance(n, int) else tuple(n) for n in (window, stride, padding, dilation)
    )
    windows = cls(*pairs)
    if min(windows.size + windows.stride + windows.dilation) < 1 or min(windows.padding) < 0:
      raise ValueError(f'window, stride and dilation are at least 1, padding at least 0: {windows}')
    if any(2 * p > extent for p, extent in zip(windows.padding, windows.extent, strict=True)):
      raise ValueError(f'the padding is more than half of the window: {windows}')
    return windows

  @property
  def extent(self) -> tuple[int, int]:
    """Rows and columns from a window's first pixel to its last."""
    return tuple(d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True))

  @property
  def overlap(self) -> bool:
    return any(n > s for n, s in zip(self.extent, self.stride, strict=True))

  def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
    fields = zip(size, self.extent, self.stride, self.padding, strict=True)
    rows, columns = ((n + 2 * p - extent) // s + 1 for n, extent, s, p in fields)
    if min(rows, columns) < 1:
      raise ValueError(f'no window fits into {size[0]} x {size[1]} pixels: {self}')
    return rows, columns

  def slices(self, x, fill):
    """The windows' first pixels, second pixels and so on, each [N, h, w, C]."""
    rows, columns = self.output_size(x.shape[1:3])
    if any(self.padding):
      x = jnp.pad(x, ((0, 0), *((p, p) for p in self.padding), (0, 0)), constant_values=fill)
    (down, right), (p, q) = self.stride, self.dilation
    for u in range(self.size[0]):
      for v in range(self.size[1]):
        end = (len(x), u * p + (rows - 1) * down + 1, v * q + (columns - 1) * right + 1, x.shape[3])
        yield jax.lax.slice(x, (0, u * p, v * q, 0), end, (1, down, right, 1))


def max_pool(
  x: Float[Array, 'N H W C'],
  window: Pair = 2,
  stride: Pair | None = None,
  padding: Pair = 0,
  dilation: Pair = 1,
) -> Float[Array, 'N h w C']:
  """The largest value of each window; `stride` is the window's size unless given.

  Rows and columns that do not fill a window are dropped; padding never wins. With stride 1 and a
  dilation it is the pooling that the à trous algorithm leaves behind where it takes a stride away.
  The gradient goes to the first of equal values, as in PyTorch, and sums where windows overlap.
  First-order and reverse mode only. ValueError: no window fits, more than 256 pixels in a window,
  or padding of more than half of the window.
  """
  return max_pool_with_argmax(x, window, stride, padding, dilation)[0]


def max_pool_with_argmax(
  x: Float[Array, 'N H W C'],
  window: Pair = 2,
  stride: Pair | None = None,
  padding: Pair = 0,
  dilation: Pair = 1,
) -> tuple[Float[Array, 'N h w C'], UInt8[Array, 'N h w C']]:
  """`max_pool`, and which pixel of its window each maximum is, 0 for the upper left one.

  SegNet (Badrinarayanan et al. 2017, section 3) stores these instead of the encoder's maps:
  `unpooling.max_unpool` takes them, `flat_indices` makes them indices into the map.
  """
  windows = Windows.of(window, stride, padding, dilation)
  if windows.size[0] * windows.size[1] > 256:
    raise ValueError(f'a window of more than 256 pixels: {windows}')
  return _max_and_position(x, windows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_and_position(x, windows):
  largest, *others = windows.slices(x, -jnp.inf)
  position = jnp.zeros(largest.shape, jnp.uint8)
  for k, other in enumerate(others, start=1):
    position = jnp.where(other > largest, jnp.uint8(k), position)  # a tie stays with the first
    largest = jnp.maximum(largest, other)
  return largest, _computed_once(position)


def _computed_once(positions):
  """`positions` as an array in memory.

  XLA would rather compare the map's pixels again wherever the positions are used, on the way up and
  in both gradients. It never repeats a reduction, so this is one: the maximum with zeros.
  """
  pairs = jnp.where(jnp.arange(2).reshape(1, 1, 1, 2, 1) == 0, positions[:, :, :, None], 0)
  return pairs.max(3)


def _forward(x, windows):
  largest, position = _max_and_position(x, windows)
  return (largest, position), (position, x.shape[1:3])


def _backward(windows, residuals, gradients):
  position, size = residuals
  return (place(gradients[0], position, size, windows),)


_max_and_position.defvjp(_forward, _backward)


def flat_indices(
  positions: UInt8[Array, 'N h w C'],
  size: tuple[int, int],
  window: Pair = 2,
  stride: Pair | None = None,
  padding: Pair = 0,
  dilation: Pair = 1,
) -> Int[Array, 'N h w C']:
  """`positions` as PyTorch's `return_indices`: `row * W + column` in the pooled map of `size`."""
  windows = Windows.of(window, stride, padding, dilation)
  (down, right), (top, left), (p, q) = windows[1:]
  u, v = jnp.divmod(positions.astype(jnp.int32), windows.size[1])
  rows = jnp.arange(u.shape[1]).reshape(1, -1, 1, 1) * down - top + u * p
  columns = jnp.arange(u.shape[2]).reshape(1, 1, -1, 1) * right - left + v * q
  return rows * size[1] + columns


def mean_pool(
  x: Float[Array, 'N H W C'],
  window: Pair = 2,
  stride: Pair | None = None,
  padding: Pair = 0,
  dilation: Pair = 1,
  count_include_pad: bool = True,
) -> Float[Array, 'N h w C']:
  """The mean of each window, `max_pool`'s arguments.

  With `count_include_pad`, PyTorch's default, padding counts as pixels of value 0; without, a
  window's mean is that of the pixels that it has inside the map. Sums in float32.
  """
  windows = Windows.of(window, stride, padding, dilation)
  total = _window_sum(x.astype(jnp.float32), windows)
  count = windows.size[0] * windows.size[1]
  if not count_include_pad:
    count = _window_sum(jnp.ones((1, *x.shape[1:3], 1), jnp.float32), windows)
  return (total / count).astype(x.dtype)


def _window_sum(x, windows):
  if windows.size != windows.stride or any(windows.padding) or max(windows.dilation) > 1:
    return sum(windows.slices(x, 0))
  (rows, columns), (height, width) = windows.output_size(x.shape[1:3]), windows.size
  blocks = x[:, : rows * height, : columns * width]
  return blocks.reshape(len(x), rows, height, columns, width, x.shape[3]).sum((2, 4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def place(
  values: Float[Array, 'N h w C'],
  positions: UInt8[Array, 'N h w C'],
  size: tuple[int, int],
  windows: Windows,
) -> Float[Array, 'N H W C']:
  """Each window's value at its position in a map of `size`, zeros elsewhere, sums at overlaps.

  A scatter written as selects; its gradient in `values` is what stands at the positions.
  First-order and reverse mode only.
  """
  if windows.size == windows.stride and max(windows.dilation) == 1:
    return _place_in_blocks(values, positions, size, windows)
  return _place_by_taps(values, positions, size, windows)


def _place_forward(values, positions, size, windows):
  return place(values, positions, size, windows), positions


def _place_backward(size, windows, positions, gradient):
  slices = enumerate(windows.slices(gradient, 0))
  return sum(jnp.where(positions == k, pixels, 0) for k, pixels in slices), None


place.defvjp(_place_forward, _place_backward)


def _place_in_blocks(values, positions, size, windows):
  """Windows side by side: a block for each window, of its value where its position says."""
  n, rows, columns, channels = values.shape
  down, right = windows.size
  numbers = jnp.arange(down * right, dtype=jnp.uint8).reshape(1, 1, down, 1, right, 1)
  chosen = positions[:, :, None, :, None] == numbers
  blocks = jnp.where(chosen, values[:, :, None, :, None], 0)
  dense = blocks.reshape(n, rows * down, columns * right, channels)
  lengths = zip(windows.padding, size, dense.shape[1:3], strict=True)
  margins = [(-p, length - (have - p), 0) for p, length, have in lengths]  # negative: cut off
  zero = jnp.zeros((), dense.dtype)
  return jax.lax.pad(dense, zero, ((0, 0, 0), *margins, (0, 0, 0)))


def _place_by_taps(values, positions, size, windows):
  """Any windows: pixel `stride * i + phase` is tap `u` of one window only, so a phase is a sum over
  its taps of shifted windows, and the phases interleave.
  """
  n, *_, channels = values.shape
  blocks, before, after, taps = zip(
    *(_taps(axis, size[axis], values.shape[1 + axis], windows) for axis in (0, 1)), strict=True
  )
  margins = ((0, 0), *zip(before, after, strict=True), (0, 0))
  values, positions = jnp.pad(values, margins), jnp.pad(positions, margins)

  def phase(row_taps, column_taps):
    total = jnp.zeros((n, *blocks, channels), values.dtype)
    for u, top in row_taps:
      for v, left in column_taps:
        here = (slice(None), slice(top, top + blocks[0]), slice(left, left + blocks[1]))
        chosen = positions[here] == u * windows.size[1] + v
        total += jnp.where(chosen, values[here], 0)
    return total

  bands = [jnp.stack([phase(a, b) for b in taps[1]], 3) for a in taps[0]]
  dense = jnp.stack(bands, 2)  # [N, rows, stride, columns, stride, C]
  rows, columns = (b * s for b, s in zip(blocks, windows.stride, strict=True))
  return dense.reshape(n, rows, columns, channels)[:, : size[0], : size[1]]


def _taps(axis, length, count, windows):
  """Of one axis: blocks, windows to add before and after, and each phase's (tap, first window)."""
  k, s, p, d = (field[axis] for field in windows)
  blocks = -(-length // s)
  first = [
    [(u, (a + p - u * d) // s) for u in range(k) if (a + p - u * d) % s == 0] for a in range(s)
  ]
  shifts = [shift for phase in first for _, shift in phase]
  before = max(0, -min(shifts))
  after = max(0, blocks + max(shifts) - count)
  return blocks, before, after, [[(u, shift + before) for u, shift in phase] for phase in first]
