import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.test_util import check_grads

from seg_jax.ops.roi_align import pyramid_level, roi_align

BOXES = np.float32(
  [
    (3.2, 1.7, 17.9, 22.1),
    (-6, -5, 9, 40),  # beyond the picture on three sides
    (8, 8, 8, 8),  # empty
    (11.3, 4.4, 11.9, 5.1),  # of less than a cell
    (60, 60, 90, 90),  # outside
    (0, 0, 24, 32),  # all of it
  ]
)


def interpolated(plane, y, x):
  """As in the operator of Caffe2, Detectron2 and torchvision."""
  height, width = plane.shape[:2]
  if y < -1 or y > height or x < -1 or x > width:
    return np.zeros(plane.shape[2])
  y, x = max(y, 0.0), max(x, 0.0)
  top, left = int(y), int(x)
  if top >= height - 1:
    y = top = height - 1
  if left >= width - 1:
    x = left = width - 1
  bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
  v, u = y - top, x - left
  upper = (1 - u) * plane[top, left] + u * plane[top, right]
  lower = (1 - u) * plane[bottom, left] + u * plane[bottom, right]
  return (1 - v) * upper + v * lower


def one_cell_after_the_other(plane, stride, box, size, samples, aligned):
  """RoIAlign by its definition, for one box and one map [H, W, C]."""
  y0, x0, y1, x1 = (float(v) / stride - (0.5 if aligned else 0) for v in box)
  height, width = y1 - y0, x1 - x0
  if not aligned:
    height, width = max(height, 1.0), max(width, 1.0)
  cells = np.zeros((size, size, plane.shape[2]))
  for i, j, a, b in np.ndindex(size, size, samples, samples):
    y = y0 + height / size * (i + (a + 0.5) / samples)
    x = x0 + width / size * (j + (b + 0.5) / samples)
    cells[i, j] += interpolated(plane, y, x) / samples**2
  return cells


class RoiAlignTest(parameterized.TestCase):
  @parameterized.product(size=(2, 3), samples=(1, 2), aligned=(False, True))
  def test_equals_one_cell_after_the_other(self, size, samples, aligned):
    """Two pictures, two maps of different sizes, each box on one of them."""
    rng, strides = np.random.default_rng(0), (4, 8)
    maps = [rng.normal(size=(2, n, n + 2, 3)).astype(np.float32) for n in (6, 3)]
    which = rng.integers(0, 2, (2, len(BOXES))).astype(np.int32)
    boxes = np.stack([BOXES, BOXES[::-1]])
    align = jax.jit(roi_align, static_argnums=(1, 4, 5, 6))
    cells = align(maps, strides, boxes, which, size, samples, aligned)
    self.assertEqual(cells.shape, (2, len(BOXES), size, size, 3))
    for n, r in np.ndindex(*which.shape):
      k = which[n, r]
      expected = one_cell_after_the_other(
        maps[k][n], strides[k], boxes[n, r], size, samples, aligned
      )
      np.testing.assert_allclose(cells[n, r], expected, rtol=1e-4, atol=1e-5, err_msg=f'{n} {r}')

  @parameterized.parameters(False, True)
  def test_gradients_are_those_of_finite_differences(self, aligned):
    rng = np.random.default_rng(1)
    maps = [jnp.asarray(rng.normal(size=(1, n, n, 2)), jnp.float32) for n in (5, 3)]
    boxes = jnp.asarray(BOXES[None, :4])
    which = jnp.array([[0, 1, 0, 1]], jnp.int32)
    check_grads(
      lambda *maps: roi_align(maps, (4, 8), boxes, which, 2, aligned=aligned), maps, 1, ['rev']
    )

  def test_levels_are_those_of_the_formula(self):
    sides = np.float32([1, 55, 56, 111.9, 112, 223, 224, 447, 448, 2000])
    boxes = jnp.asarray(np.stack([0 * sides, 0 * sides, sides, sides], -1))
    expected = [
      min(max(math.floor(4 + math.log2(side / 224) + 1e-6), 2), 5) - 2 for side in sides.tolist()
    ]
    np.testing.assert_array_equal(pyramid_level(boxes, (2, 5)), expected)


if __name__ == '__main__':
  absltest.main()
