"""3x3 convolutions with fewer products: Winograd's minimal filtering, F(2x2, 3x3) and F(4x4, 3x3).

Fast Algorithms for Convolutional Neural Networks (Lavin and Gray 2016, sections 4.1 and 4.3),
https://arxiv.org/abs/1509.09308. The result is cut into tiles of m x m pixels, each of which sees
m + 2 both ways. In another basis of these, of the kernel and of the result, a tile costs (m + 2)^2
products for each pair of channels, where the definition has 9 m^2: 16 for 36, or 36 for 144. They
are as many matrix products over all tiles; the rest is sums. The gradients cost the same. The
larger tile has other points than the paper's (0, 1, -1, 2, -2 and infinity), which round twice as
much. In float32 its errors (RMS) are twice those of a sum of product after product; the smaller
tile's are less than those. XLA's own convolution adds in blocks, as the processor's caches have it:
between a third and all of them.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from seg_jax.ops.materialized import materialized

Padding = tuple[tuple[int, int], tuple[int, int]]

# Values of tiles and of their products that there are at a time: 32 MiB.
_LARGE = 2**23
# Tiles whose products take as long as it takes to bring a kernel into the other basis.
_TILES_OF_A_KERNEL = 128


def convolve(
  x: Float[Array, 'N H W C'], kernel: Float[Array, '3 3 C D'], padding: Padding, rate: int = 1
) -> Float[Array, 'N h w D']:
  """The convolution of stride 1; `padding` is ((above, below), (left, right)), of 0, 1 or 2 rates.

  What a kernel with holes reads is `rate` apart: pixels that are so far from each other are a
  picture of their own.
  """
  rows, columns = (n + sum(p) - 2 * rate for n, p in zip(x.shape[1:3], padding, strict=True))
  x, padding = _apart(x, rate), _in_rates(padding, rate)
  basis = _quickest(x.shape, padding)
  y = _filter(basis, x, _taps(basis, kernel), padding)
  return _together(y, rate)[:, :rows, :columns]


def gradients(
  x: Float[Array, 'N H W C'],
  kernel: Float[Array, '3 3 C D'],
  gradient: Float[Array, 'N h w D'],
  padding: Padding,
  rate: int = 1,
) -> tuple[Float[Array, 'N H W C'], Float[Array, '3 3 C D']]:
  """Those of x and of the kernel, from that of `convolve`'s result."""
  _, rows, columns, _ = x.shape
  x, gradient, padding = _apart(x, rate), _apart(gradient, rate), _in_rates(padding, rate)
  basis = _quickest(x.shape, padding)
  # That of x is the gradient's convolution with the kernel turned around.
  taps = _taps(basis, kernel)
  taps = [[taps[i][j].T for j in basis.turned] for i in basis.turned]
  of_x = _filter(basis, gradient, taps, tuple(tuple(2 - end for end in ends) for ends in padding))
  return _together(of_x, rate)[:, :rows, :columns], _of_kernel(basis, x, gradient, padding)


def _apart(x, rate):
  """[N rate², h, w, C]: pictures of the pixels that are `rate` apart, with zeros behind."""
  n, rows, columns, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, -rows % rate), (0, -columns % rate), (0, 0)))
  h, w = x.shape[1] // rate, x.shape[2] // rate
  x = x.reshape(n, h, rate, w, rate, channels).transpose(0, 2, 4, 1, 3, 5)
  return x.reshape(n * rate**2, h, w, channels)


def _together(x, rate):
  """`_apart`, undone, but for the zeros."""
  _, h, w, channels = x.shape
  x = x.reshape(-1, rate, rate, h, w, channels).transpose(0, 3, 1, 4, 2, 5)
  return x.reshape(-1, h * rate, w * rate, channels)


def _in_rates(padding, rate):
  return tuple(tuple(end // rate for end in ends) for ends in padding)


def _result_size(shape, padding):
  return [n + sum(ends) - 2 for n, ends in zip(shape[1:3], padding, strict=True)]


def _quickest(shape, padding):
  """The basis with the fewest products; bringing the kernel into it counts as some, too."""
  rows, columns = _result_size(shape, padding)

  def products(basis):
    tiles = shape[0] * -(-rows // basis.tile) * -(-columns // basis.tile)
    return (basis.tile + 2) ** 2 * (tiles + _TILES_OF_A_KERNEL)

  return min(_BASES, key=products)


def _filter(basis, x, taps, padding):
  rows, columns = _result_size(x.shape, padding)
  share = _share(basis, len(x), rows, columns, sum(taps[0][0].shape))
  change = functools.partial(_along, basis.result)

  def result(x):
    products = [
      [value @ tap for value, tap in zip(*row, strict=True)]
      for row in zip(_seen(basis, x), taps, strict=True)
    ]
    # Stored after each axis, as what comes next reads every value several times.
    return _interleave(materialized(change, materialized(change, products)))

  y = lax.map(result, _shares_seen(basis, x, padding, rows, columns, share))
  return y.reshape(len(x), -1, *y.shape[3:])[:, :rows, :columns]


def _of_kernel(basis, x, gradient, padding):
  tile = basis.tile
  rows, columns = gradient.shape[1:3]
  share = pictures, height = _share(basis, len(x), rows, columns, x.shape[-1] + gradient.shape[-1])
  gradient = jnp.pad(gradient, ((0, 0), (0, -rows % height), (0, -columns % tile), (0, 0)))
  gradient = gradient.reshape(-1, pictures, height, *gradient.shape[2:])

  def add(total, maps):
    x, gradient = maps
    pixels = [[gradient[:, i::tile, j::tile] for j in range(tile)] for i in range(tile)]
    products = _both_ways(basis.result_transposed, pixels)
    return [
      [so_far + _over_pixels(seen, back) for so_far, seen, back in zip(*row, strict=True)]
      for row in zip(total, _seen(basis, x), products, strict=True)
    ], None

  zero = jnp.zeros((x.shape[-1], gradient.shape[-1]), x.dtype)
  maps = _shares_seen(basis, x, padding, rows, columns, share), gradient
  total, _ = lax.scan(add, [[zero] * (tile + 2)] * (tile + 2), maps)
  return jnp.stack([jnp.stack(row) for row in _both_ways(basis.kernel_transposed, total)])


def _share(basis, count, rows, columns, channels):
  """How many of `count` pictures, and how many rows of them, are worked on at a time."""
  tiles, across = -(-rows // basis.tile), -(-columns // basis.tile)
  values = (basis.tile + 2) ** 2 * across * channels  # of one row of tiles
  bands = -(-tiles * values // _LARGE)
  if bands > 1:
    return 1, basis.tile * -(-tiles // bands)
  fitting = [n for n in range(1, count + 1) if count % n == 0 and n * tiles * values <= _LARGE]
  return fitting[-1], basis.tile * tiles


def _shares_seen(basis, x, padding, rows, columns, share):
  """What all shares of a result of `rows` and `columns` see, [shares, pictures, h, w, C]."""
  pictures, height = share
  bands = -(-rows // height)
  wanted = bands * height + 2, columns + -columns % basis.tile + 2
  borders = [
    (before, m - n - before)
    for n, m, (before, _) in zip(x.shape[1:3], wanted, padding, strict=True)
  ]
  x = jnp.pad(x, ((0, 0), *borders, (0, 0)))
  x = jnp.stack([x[:, i * height : (i + 1) * height + 2] for i in range(bands)], 1)
  return x.reshape(-1, pictures, *x.shape[2:])


def _seen(basis, x):
  """What the tiles see, in the other basis: a square of arrays [N, tiles, tiles, C]."""
  size = basis.tile + 2
  rows, columns = (
    [slice(i, n - size + 1 + i, basis.tile) for i in range(size)] for n in x.shape[1:3]
  )
  return _both_ways(basis.pixels, [[x[:, row, column] for column in columns] for row in rows])


def _taps(basis, kernel):
  return _both_ways(basis.kernel, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _both_ways(change, square):
  """`change` of the columns of a square of arrays, and then of its rows."""
  return _along(change, _along(change, square))


def _along(change, square):
  """`change` of the columns of a square; they become rows."""
  return [change(*column) for column in zip(*square, strict=True)]


def _over_pixels(x, y):
  """The matrix product [C, D] over all pixels."""
  return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])


def _interleave(square):
  """[N, m h, m w, D] from the pixels of every m-th row and column, each [N, h, w, D]."""
  n, h, w, d = square[0][0].shape
  m = len(square)
  pixels = jnp.stack([jnp.stack(row, 3) for row in square], 2)
  return pixels.reshape(n, m * h, m * w, d)


class _Basis(NamedTuple):
  """F(tile x tile, 3x3): the changes of basis along one axis, functions of its pixels or taps.

  B', G and A' of the paper, then G' and A. A kernel a, b, c becomes a, c and, at each of some
  points t, (a + b t + c t^2) / |t|, or half of that; `pixels` makes up for the division. Turned
  around, it has the same value at 1 / t. As that is a point, too, the values only change places.
  """

  tile: int
  pixels: Callable
  kernel: Callable
  result: Callable
  kernel_transposed: Callable
  result_transposed: Callable
  turned: tuple[int, ...]  # where a turned kernel finds its values


# At 0, 1, -1 and infinity.
_F2 = _Basis(
  tile=2,
  pixels=lambda a, b, c, d: (a - c, b + c, c - b, b - d),
  kernel=lambda a, b, c: (a, 0.5 * (a + b + c), 0.5 * (a - b + c), c),
  result=lambda a, b, c, d: (a + b + c, b - c - d),
  kernel_transposed=lambda a, b, c, d: (a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) + d),
  result_transposed=lambda a, b: (a, a + b, a - b, -b),
  turned=(3, 1, 2, 0),
)

# At 0, p, -p, q, -q and infinity, with p = 1/√2 and q = √2.
_ROOT = math.sqrt(2)


def _pixels(a, b, c, d, e, f):
  even_p, odd_p = (2 * c - e) * (_ROOT / 3), (2 * b - d) / 3
  even_q, odd_q = (e - 0.5 * c) / (3 * _ROOT), (d - 0.5 * b) / 3
  first, last = a - 2.5 * c + e, b - 2.5 * d + f
  return first, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, last


def _kernel(a, b, c):
  even_p, even_q = _ROOT * a + c / _ROOT, a / _ROOT + _ROOT * c
  return a, even_p + b, even_p - b, even_q + b, even_q - b, c


def _result(a, b, c, d, e, f):
  even_p, odd_p, even_q, odd_q = b + c, (b - c) / _ROOT, d + e, (d - e) * _ROOT
  return (
    a + even_p + even_q,
    odd_p + odd_q,
    0.5 * even_p + 2 * even_q,
    0.5 * odd_p + 2 * odd_q + f,
  )


def _kernel_transposed(a, b, c, d, e, f):
  even_p, even_q = b + c, d + e
  first, last = _ROOT * even_p + even_q / _ROOT, even_p / _ROOT + _ROOT * even_q
  return a + first, b - c + d - e, last + f


def _result_transposed(a, b, c, d):
  even_p, odd_p = a + 0.5 * c, (b + 0.5 * d) / _ROOT
  even_q, odd_q = a + 2 * c, (b + 2 * d) * _ROOT
  return a, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, d


_F4 = _Basis(
  tile=4,
  pixels=_pixels,
  kernel=_kernel,
  result=_result,
  kernel_transposed=_kernel_transposed,
  result_transposed=_result_transposed,
  turned=(5, 3, 4, 1, 2, 0),
)
_BASES = _F2, _F4
