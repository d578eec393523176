"""3x3 convolutions with fewer products: Winograd's minimal filtering, F(2x2, 3x3).

Fast Algorithms for Convolutional Neural Networks (Lavin and Gray 2016, section 4.1),
https://arxiv.org/abs/1509.09308. The result is cut into tiles of 2x2 pixels, each of which sees
4x4. In another basis of these, of the kernel and of the result, a tile costs 16 products for each
pair of channels, where the definition has 36: sixteen matrix products over all tiles, and some
sums. So do the gradients. In float32, results are as near to the exact ones as a plain
convolution's, within a factor of three.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

# Values of tiles and of their products that there are at a time: 32 MiB.
_LARGE = 2**23


def convolve(
  x: Float[Array, 'N H W C'], kernel: Float[Array, '3 3 C D'], padding: Padding, rate: int = 1
) -> Float[Array, 'N h w D']:
  """The convolution of stride 1; `padding` is ((above, below), (left, right)), of 0, 1 or 2 rates.

  What a kernel with holes reads is `rate` apart: pixels that are so far from each other are a
  picture of their own.
  """
  rows, columns = (n + sum(p) - 2 * rate for n, p in zip(x.shape[1:3], padding, strict=True))
  y = _filter(_apart(x, rate), _taps(kernel), _in_rates(padding, rate))
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
  # That of x is the gradient's convolution with the kernel turned around, which in the other basis
  # exchanges the ends.
  taps, turned = _taps(kernel), (3, 1, 2, 0)
  taps = [[taps[i][j].T for j in turned] for i in turned]
  of_x = _filter(gradient, taps, tuple(tuple(2 - end for end in ends) for ends in padding))
  return _together(of_x, rate)[:, :rows, :columns], _of_kernel(x, gradient, padding)


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


def _filter(x, taps, padding):
  rows, columns = (n + sum(ends) - 2 for n, ends in zip(x.shape[1:3], padding, strict=True))
  share = _share(len(x), rows, columns, sum(taps[0][0].shape))

  def result(x):
    seen = _seen(x)
    products = [[seen[i][j] @ taps[i][j] for j in range(4)] for i in range(4)]
    return _interleave(_both_ways(_result, products))

  y = lax.map(result, _shares_seen(x, padding, rows, columns, share))
  return y.reshape(len(x), -1, *y.shape[3:])[:, :rows, :columns]


def _of_kernel(x, gradient, padding):
  rows, columns = gradient.shape[1:3]
  share = pictures, height = _share(len(x), rows, columns, x.shape[-1] + gradient.shape[-1])
  gradient = jnp.pad(gradient, ((0, 0), (0, -rows % height), (0, columns % 2), (0, 0)))
  gradient = gradient.reshape(-1, pictures, height, *gradient.shape[2:])

  def add(total, maps):
    x, gradient = maps
    seen = _seen(x)
    pixels = [[gradient[:, i::2, j::2] for j in range(2)] for i in range(2)]
    products = _both_ways(_result_transposed, pixels)
    return [
      [total[i][j] + _over_pixels(seen[i][j], products[i][j]) for j in range(4)] for i in range(4)
    ], None

  zero = jnp.zeros((x.shape[-1], gradient.shape[-1]), x.dtype)
  maps = _shares_seen(x, padding, rows, columns, share), gradient
  total, _ = lax.scan(add, [[zero] * 4] * 4, maps)
  return jnp.stack([jnp.stack(row) for row in _both_ways(_kernel_transposed, total)])


def _share(count, rows, columns, channels):
  """How many of `count` pictures, and how many rows of them, are worked on at a time."""
  tiles = (rows + 1) // 2
  values = 16 * ((columns + 1) // 2) * channels  # of one row of tiles
  bands = -(-tiles * values // _LARGE)
  if bands > 1:
    return 1, 2 * -(-tiles // bands)
  fitting = [n for n in range(1, count + 1) if count % n == 0 and n * tiles * values <= _LARGE]
  return fitting[-1], 2 * tiles


def _shares_seen(x, padding, rows, columns, share):
  """What all shares of a result of `rows` and `columns` see, [shares, pictures, h, w, C]."""
  pictures, height = share
  bands = -(-rows // height)
  wanted = bands * height + 2, columns + columns % 2 + 2
  borders = [
    (before, m - n - before)
    for n, m, (before, _) in zip(x.shape[1:3], wanted, padding, strict=True)
  ]
  x = jnp.pad(x, ((0, 0), *borders, (0, 0)))
  x = jnp.stack([x[:, i * height : (i + 1) * height + 2] for i in range(bands)], 1)
  return lax.optimization_barrier(x.reshape(-1, pictures, *x.shape[2:]))


def _seen(x):
  """What the tiles see, in the other basis: a square of arrays [N, tiles, tiles, C]."""
  rows, columns = ([slice(i, n - 3 + i, 2) for i in range(4)] for n in x.shape[1:3])
  return _both_ways(_pixels, [[x[:, row, column] for column in columns] for row in rows])


def _taps(kernel):
  return _both_ways(_kernel, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _both_ways(change, square):
  """`change` of the columns of a square of arrays, and then of its rows."""
  columns = [change(*column) for column in zip(*square, strict=True)]
  return [change(*row) for row in zip(*columns, strict=True)]


# The changes of basis along one axis, B', G and A' of the paper, and two of them transposed.
def _pixels(a, b, c, d):
  return a - c, b + c, c - b, b - d


def _kernel(a, b, c):
  outer, inner = 0.5 * (a + c), 0.5 * b
  return a, outer + inner, outer - inner, c


def _kernel_transposed(a, b, c, d):
  outer = 0.5 * (b + c)
  return a + outer, 0.5 * (b - c), outer + d


def _result(a, b, c, d):
  return a + b + c, b - c - d


def _result_transposed(a, b):
  return a, a + b, a - b, -b


def _over_pixels(x, y):
  """The matrix product [C, D] over all pixels."""
  return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])


def _interleave(square):
  """[N, 2 h, 2 w, D] from the pixels of even and odd rows and columns, each [N, h, w, D]."""
  n, h, w, d = square[0][0].shape
  pairs = jnp.stack([jnp.stack(row, 3) for row in square], 2)
  return pairs.reshape(n, 2 * h, 2 * w, d)
