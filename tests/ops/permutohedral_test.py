import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops import permutohedral
from seg_jax.ops.permutohedral import BLOCK

# The shape of the features, how far they spread, whether there are fewer vertices than pixels
CASES = (
  ((2, 7, 9, 5), 1.0, False),
  ((1, 9, 11, 5), 8.0, False),
  ((1, 60, 50, 3), 1.0, True),
  ((1, 30, 20, 2), 4.0, True),
  ((1, 12, 13, 1), 3.0, True),
  ((1, 26, 30, 5), 6.0, False),
)


def features(shape, spread):
  return np.random.default_rng(0).normal(scale=spread, size=shape).astype(np.float32)


def values(shape, channels=3):
  return np.random.default_rng(1).uniform(size=(*shape[:3], channels)).astype(np.float32)


def embedded(points):
  """E f of pages 5 and 6: points [P, d] in the plane of sum 0, [P, d + 1]."""
  d = points.shape[1]
  y = np.zeros((len(points), d + 1))
  for i in range(1, d + 1):
    scaled = points[:, i - 1] * np.sqrt(2 / 3) * (d + 1) / np.sqrt(i * (i + 1))
    y[:, :i] += scaled[:, None]
    y[:, i] -= i * scaled
  return y


def simplex(y):
  """The vertices around one point of the plane, with barycentric coordinates, by elimination.

  A vertex is a lattice point (whole coordinates of the same remainder of d + 1, of sum 0), and one
  around the point has each coordinate less than d + 1 away from it: of remainder m, that leaves
  each coordinate two choices, and the sum how many of them are the larger ones. Those whose
  coordinates are furthest ahead take it.
  """
  d = len(y) - 1
  vertices = []
  for m in range(d + 1):
    low = np.floor((y - m) / (d + 1)).astype(int) * (d + 1) + m
    steps = -low.sum() // (d + 1)
    ahead = np.argsort(low - y, kind='stable')  # the furthest ahead of `low` first
    vertex = low.copy()
    vertex[ahead[:steps]] += d + 1
    vertices.append(vertex)
  system = np.vstack([np.array(vertices).T, np.ones(d + 1)])
  weights = np.linalg.lstsq(system, np.append(y, 1.0), rcond=None)[0]
  return [tuple(vertex.tolist()) for vertex in vertices], weights


def brute_force(points, x):
  """The filter of points [P, d] and x [P, C] by a dict of vertices, and how many they are."""
  d = points.shape[1]
  simplices = [simplex(y) for y in embedded(points.astype(np.float64))]
  table = {}
  for (vertices, weights), value in zip(simplices, x.astype(np.float64), strict=True):
    assert weights.min() > -1e-6  # the simplex is around the point
    for vertex, weight in zip(vertices, weights, strict=True):
      table[vertex] = table.get(vertex, 0) + weight * value
  for axis in range(d + 1):
    blurred = {}
    for vertex, value in table.items():
      step = np.full(d + 1, -1)
      step[axis] = d
      sides = [tuple((np.array(vertex) + sign * step).tolist()) for sign in (1, -1)]
      blurred[vertex] = value + sum(table.get(side, 0) for side in sides) / 2
    table = blurred
  y = [
    sum(weight * table[vertex] for vertex, weight in zip(*item, strict=True)) for item in simplices
  ]
  return np.array(y) / (1 + 2.0**-d), len(table)


@functools.partial(jax.jit, static_argnums=2)
def filtered(f, x, reverse=False):
  lattice = permutohedral.build(f)
  return permutohedral.blur(lattice, x, reverse), lattice


class PermutohedralTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_equals_a_table_of_vertices(self, shape, spread, fewer):
    f, x = features(shape, spread), values(shape)
    y, lattice = filtered(f, x)
    pairs = zip(f, x, strict=True)
    parts = [brute_force(a.reshape(-1, shape[-1]), b.reshape(-1, 3)) for a, b in pairs]
    expected = np.concatenate([part for part, _ in parts]).reshape(x.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * expected.max())
    vertices = sum(count for _, count in parts)
    self.assertEqual(int(lattice.size), vertices + 1)
    self.assertEqual(vertices < np.prod(shape[:3]), fewer)

  def test_the_last_case_has_several_blocks_and_needs_all_rows(self):
    shape, spread, _ = CASES[-1]
    size = int(filtered(features(shape, spread), values(shape))[1].size)
    self.assertGreater(size, BLOCK)
    self.assertGreater(size, -(-np.prod(shape[:3]) // BLOCK) * BLOCK)

  def test_every_pixel_lies_within_its_simplex(self):
    lattice = filtered(features((1, 20, 20, 5), 2.0), values((1, 20, 20)))[1]
    self.assertGreater(float(lattice.weights.min()), -1e-5)
    np.testing.assert_allclose(lattice.weights.sum(-1), 1, atol=1e-5)

  def test_pictures_of_a_batch_do_not_meet(self):
    """Not even equal ones."""
    f, x = features((1, 8, 9, 5), 1.0), values((3, 8, 9))
    together, _ = filtered(np.concatenate([f, f, f + 1]), x)
    for i, one in enumerate((f, f, f + 1)):
      np.testing.assert_allclose(together[i : i + 1], filtered(one, x[i : i + 1])[0], atol=1e-5)

  @parameterized.parameters(*CASES[:4:3])
  def test_reversed_it_is_its_own_transpose(self, shape, spread, _):
    """Forwards it is not quite, as vertices are missing."""
    f = features((1, 9, 10, shape[-1]), spread)
    identity = np.eye(90, dtype=np.float32).reshape(1, 9, 10, 90)
    forth, back = (np.reshape(filtered(f, identity, turn)[0], (90, 90)) for turn in (False, True))
    np.testing.assert_allclose(back, forth.T, atol=1e-6)
    self.assertGreater(np.abs(forth - forth.T).max(), 1e-2)

  def test_where_pixels_lie_densely_it_is_a_gaussian(self):
    """On average over impulses: the same deviation, and a shape that is a little flatter."""
    size, reach, theta = 48, 16, 4
    grid = np.stack(np.meshgrid(*2 * [np.arange(size)], indexing='ij'), -1)[None]
    centres = np.argwhere(np.ones((12, 12))) + 18
    impulses = (grid[:, :, :, None] == centres).all(-1).astype(np.float32)
    y = np.asarray(filtered((grid / theta).astype(np.float32), impulses)[0])[0]
    responses = [
      y[i - reach : i + reach + 1, j - reach : j + reach + 1, k] for k, (i, j) in enumerate(centres)
    ]
    response = np.mean(responses, 0)
    distances = ((np.indices(response.shape) - reach) ** 2).sum(0) / theta**2
    self.assertAlmostEqual((response * distances).sum() / response.sum(), 2, delta=0.02)
    expected = np.exp(-distances / 2)
    np.testing.assert_allclose(response / response.sum() * expected.sum(), expected, atol=0.1)

  def test_neighbours_know_each_other(self):
    neighbours = np.asarray(filtered(features((1, 20, 20, 3), 1.0), values((1, 20, 20)))[1][2])
    self.assertGreater((neighbours > 0).sum(), 100)
    for direction, side in itertools.product(range(4), (0, 1)):
      rows = np.flatnonzero(neighbours[direction, side])
      there = neighbours[direction, side, rows]
      np.testing.assert_array_equal(neighbours[direction, 1 - side, there], rows)

  def test_the_numbers_of_64_bits_stay_inside(self):
    shape = (1, 8, 8, 5)
    outputs = jax.eval_shape(filtered, features(shape, 1.0), values(shape))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(outputs)}
    self.assertEqual(dtypes, {jnp.dtype('float32'), jnp.dtype('int32')})


if __name__ == '__main__':
  absltest.main()
