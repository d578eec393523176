"""Gaussian filtering of pixels by position and colour, in time linear in their number.

Adams, Baek and Davis 2010, Fast High-Dimensional Filtering Using the Permutohedral Lattice. The
space of the d features is cut into simplices whose vertices are points of a lattice. A pixel's
value is shared out to the d + 1 vertices of its simplex (splat), the vertices are blurred by
(1/2, 1, 1/2) along each of the d + 1 directions of the lattice, one after the other, and the pixel
reads its vertices again (slice). Vertices that no pixel shares in do not exist: what would be
blurred into them is lost, as in the authors' code.

Where that code has a hash table, vertices here are numbers, sorted, and found by bisection, which
has static shapes. The pictures of a batch lie far apart in one lattice. There is room for as many
vertices as can be, d + 1 for each pixel; a natural picture has a twentieth to two thirds of one, so
that loops end behind the last one, and values are kept for one to a pixel unless there are more.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

BLOCK = 2048  # vertices that are blurred at a time: few, so that they stay in a CPU's cache


class Lattice(NamedTuple):
  """Where pixels lie in it, D = d + 1; vertices are rows from 1 on, and row 0 stays zero."""

  vertices: Int[Array, 'N H W D']  # of each pixel's simplex
  weights: Float[Array, 'N H W D']  # its barycentric coordinates
  neighbours: Int[Array, 'D 2 rows']  # the next rows along each direction; 0 where there is none
  size: Int[Array, '']  # rows in use


def build(features: Float[Array, 'N H W d']) -> Lattice:
  """The lattice for a kernel exp(-|f - g|² / 2) between features f and g of a picture's pixels.

  The vertices are numbered row by row of the box of lattice cells that holds them all, in 64 bits;
  boxes of more cells than that are beyond any picture of a few channels.
  """
  # Fused with what follows, XLA would compile it for minutes.
  cells, ranks, weights = lax.optimization_barrier(_simplices(features))
  with jax.enable_x64(True):
    keys, steps = _numbered(cells, ranks)
    table, size = _distinct(keys)
    vertices = jnp.searchsorted(table, keys).astype(jnp.int32)
    neighbours = _neighbours(table, steps, size)
  return Lattice(vertices.reshape(weights.shape), weights, neighbours, size)


def blur(
  lattice: Lattice, values: Float[Array, 'N H W C'], reverse: bool = False
) -> Float[Array, 'N H W C']:
  """About sum_j exp(-|f_i - f_j|² / 2) values_j for each pixel i, itself included.

  As some vertices do not exist, the order of the directions matters a little: the filter with the
  order reversed is this one's transpose.
  """
  capacity = lattice.neighbours.shape[-1]
  small = min(_rows(math.prod(values.shape[:3])), capacity)
  run = functools.partial(_blur, reverse)
  return lax.cond(
    lattice.size <= small,
    functools.partial(run, small),
    functools.partial(run, capacity),
    lattice,
    values,
  )


def _blur(reverse, rows, lattice, values):
  table = _splat(lattice, values, rows)
  other = jnp.zeros_like(table)
  directions = range(lattice.weights.shape[-1])
  for direction in reversed(directions) if reverse else directions:
    table, other = _blur_along(direction, lattice, table, other), table
  # The kernel of the blurred lattice at its centre is that much larger than 1.
  scale = 1 / (1 + 2.0 ** -(len(directions) - 1))
  corners = zip(*(jnp.moveaxis(a, -1, 0) for a in lattice[:2]), strict=True)
  return scale * sum(_taken(table, rows) * weights[..., None] for rows, weights in corners)


def _splat(lattice, values, rows):
  """Each vertex's share of the pixels' values, [rows, C]; a row of the picture at a time."""
  count, width, channels = math.prod(values.shape[:2]), *values.shape[2:]
  lines = [a.reshape(count, width, -1) for a in (lattice.vertices, lattice.weights, values)]

  def line(i, table):
    vertices, weights, x = (a[i] for a in lines)
    shares = weights[:, :, None] * x[:, None]
    shares = shares.reshape(-1, channels)
    return table.at[vertices.reshape(-1)].add(shares, mode='promise_in_bounds')

  return lax.fori_loop(0, count, line, jnp.zeros((rows, channels), values.dtype))


def _blur_along(direction, lattice, table, other):
  """`table` blurred, written over `other`, block by block up to the last vertex."""

  def block(i, other):
    start = i * BLOCK
    window = lax.dynamic_slice(lattice.neighbours, (direction, 0, start), (1, 2, BLOCK))[0]
    mean = (_taken(table, window[0]) + _taken(table, window[1])) / 2
    blurred = lax.dynamic_slice_in_dim(table, start, BLOCK) + mean
    return lax.dynamic_update_slice_in_dim(other, blurred, start, 0)

  return lax.fori_loop(0, -(-lattice.size // BLOCK), block, other)


def _taken(table, rows):
  return table.at[rows].get(mode='promise_in_bounds')


def _simplices(features):
  """The simplex of each pixel: a cell, the order of its coordinates, and the place in it.

  Divided by d + 1, the lattice's points of remainder 0 have whole coordinates, which sum to 0; the
  cell is the nearest of them, the weights those of page 10. `ranks` count, for each coordinate,
  those that lie further ahead of the cell. The vertex of remainder m is, in each coordinate,
  (cell - [rank + m > d]) * (d + 1) + m. All are [N, H, W, D]; `weights` are by remainder.
  """
  d = features.shape[-1]
  y = jnp.einsum('nhwf,fd->nhwd', features, _embedding(d), precision='highest')
  cells = jnp.round(y)
  rest = y - cells
  index = np.arange(d + 1)
  here, there = rest[..., :, None], rest[..., None, :]
  first = np.broadcast_to(index[None, :] < index[:, None], (1, 1, 1, d + 1, d + 1))  # of equal ones
  ahead = (there > here) | ((there == here) & first)
  ranks = jnp.sum(ahead, -1, dtype=jnp.int32)
  # Where rounding has left the plane of sum 0, the coordinates rounded furthest step back.
  ranks += jnp.sum(cells, -1, keepdims=True).astype(jnp.int32)
  step = (ranks < 0).astype(jnp.int32) - (ranks > d).astype(jnp.int32)
  ranks += (d + 1) * step
  cells = cells.astype(jnp.int32) + step
  rest -= step.astype(rest.dtype)
  falling = (d - ranks)[..., None, :] == index.astype(np.int32).reshape(1, 1, 1, -1, 1)
  ordered = jnp.sum(jnp.where(falling, rest[..., None, :], 0.0), -1)  # the smallest first
  weights = ordered - jnp.roll(ordered, 1, -1)
  return cells, ranks, weights.at[..., 0].add(1.0)


def _embedding(d):
  """The matrix [d, d + 1] from features into the plane of sum 0, in units of d + 1 (page 5).

  Its rows are orthogonal, and as long as the blur's deviation asks for (page 6).
  """
  index = np.arange(1, d + 1)
  matrix = np.tril(np.ones((d, d + 1)))
  matrix[index - 1, index] = -index
  return (matrix * np.sqrt(2 / 3 / (index * (index + 1)))[:, None]).astype(np.float32)


def _numbered(cells, ranks):
  """One number for each vertex of each pixel, flat, and what a step along a coordinate adds to it.

  The last coordinate follows from the others. A step back from any cell stays in the box.
  """
  pictures, d = len(cells), cells.shape[-1] - 1
  cells = cells[..., :d].astype(jnp.int64)
  low = jnp.min(cells, (0, 1, 2)) - 2
  extents = jnp.max(cells, (0, 1, 2)) - low + 2
  strides = (d + 1) * jnp.cumprod(jnp.concatenate([jnp.ones(1, jnp.int64), extents]))
  steps, picture = strides[:d], strides[d]
  first = jnp.sum((cells - low.reshape(1, 1, 1, -1)) * steps.reshape(1, 1, 1, -1), -1)
  first += picture * jnp.arange(pictures).reshape(-1, 1, 1)
  remainders = jnp.arange(d + 1, dtype=jnp.int32)
  stepped = ranks[..., None, :d] + remainders.reshape(1, 1, 1, -1, 1) > d
  back = jnp.sum(jnp.where(stepped, steps.reshape(1, 1, 1, 1, -1), 0), -1)
  keys = first[..., None] - back + remainders.astype(jnp.int64).reshape(1, 1, 1, -1)
  return keys.reshape(-1), jnp.concatenate([steps, jnp.zeros(1, jnp.int64)])


def _distinct(keys):
  """Each of `keys` once, sorted, from row 1 on, and the number of rows with row 0."""
  keys = jnp.sort(keys)
  rows = 1 + jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), _differ(keys)]), dtype=jnp.int32)
  table = jnp.full(_rows(len(keys)), jnp.iinfo(jnp.int64).max).at[0].set(-1)
  return table.at[rows].set(keys, mode='promise_in_bounds'), rows[-1] + 1


def _differ(keys):
  return (keys[1:] != keys[:-1]).astype(jnp.int32)


def _neighbours(table, steps, size):
  """For each direction and row, the row whose vertex is the next one, and that of the one before.

  The next one along direction i is d further in coordinate i and 1 less in all others: a step of i,
  and the remainder 1 less; with remainder 0, a step back of all others, and the remainder d.
  """
  count = len(steps)

  def block(i, found):
    start = i * BLOCK
    rows = start + jnp.arange(BLOCK, dtype=jnp.int32)
    keys = lax.dynamic_slice_in_dim(table, start, BLOCK)
    real = (rows > 0) & (rows < size)
    for direction in range(count):
      step = steps[direction]
      ahead = keys + jnp.where(keys % count > 0, step - 1, step - jnp.sum(steps) + count - 1)
      at = jnp.searchsorted(table, ahead).astype(jnp.int32)
      at = jnp.where(real & (table[at] == ahead), at, 0)
      found = found.at[direction, 0, rows].set(at)
      found = found.at[direction, 1, at].set(rows)
    return found

  found = jnp.zeros((count, 2, len(table)), jnp.int32)
  found = lax.fori_loop(jnp.int32(0), -(-size // BLOCK), block, found)
  return found.at[:, 1, 0].set(0)  # what rows without a next one have written


def _rows(vertices: int) -> int:
  """Rows for that many vertices and row 0, in whole blocks."""
  return -(-(vertices + 1) // BLOCK) * BLOCK
