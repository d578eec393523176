import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops import boxes


def random_boxes(count, seed=0, size=40.0):
  """Boxes of all kinds; among the last are empty ones, and equal ones."""
  rng = np.random.default_rng(seed)
  corners = rng.uniform(-0.1 * size, 1.1 * size, (count, 2, 2))
  found = np.concatenate([corners.min(1), corners.max(1)], -1).astype(np.float32)
  found[-1] = found[-2]
  found[-3, 2:] = found[-3, :2]
  return found


def shared_cells(a, b):
  """The pixels that two boxes of whole numbers share, counted."""
  cells = [{(y, x) for y in range(box[0], box[2]) for x in range(box[1], box[3])} for box in (a, b)]
  return len(cells[0] & cells[1]), len(cells[0] | cells[1])


class BoxesTest(parameterized.TestCase):
  def test_overlaps_are_those_of_pixels(self):
    a, b = (np.round(random_boxes(12, seed)).astype(int) for seed in (1, 2))
    iou, shared = (
      np.asarray(jax.jit(function)(jnp.float32(a), jnp.float32(b)))
      for function in (boxes.iou, boxes.intersection)
    )
    self.assertGreater(np.count_nonzero(iou), 30)
    for i, j in np.ndindex(12, 12):
      common, union = shared_cells(a[i].tolist(), b[j].tolist())
      self.assertEqual(shared[i, j], common)
      self.assertAlmostEqual(iou[i, j], common / union if union else 0, places=6)

  def test_deltas_lead_from_anchors_to_boxes_and_back(self):
    """By the formulas of the paper, one box at a time."""
    anchors = np.float32([(0, 0, 10, 20), (5, 5, 6, 9), (-4, 3, 30, 31)])
    truth = np.float32([(2, 4, 9, 30), (0, 0, 50, 50), (1, 1, 2, 2)])
    weights = (10.0, 20.0, 5.0, 7.0)
    expected = []
    for (ay0, ax0, ay1, ax1), (y0, x0, y1, x1) in zip(anchors, truth, strict=True):
      expected.append(
        (
          weights[0] * ((x0 + x1) / 2 - (ax0 + ax1) / 2) / (ax1 - ax0),
          weights[1] * ((y0 + y1) / 2 - (ay0 + ay1) / 2) / (ay1 - ay0),
          weights[2] * math.log((x1 - x0) / (ax1 - ax0)),
          weights[3] * math.log((y1 - y0) / (ay1 - ay0)),
        )
      )
    deltas = boxes.encode(truth, anchors, weights)
    np.testing.assert_allclose(deltas, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(boxes.decode(deltas, anchors, weights), truth, rtol=1e-5, atol=1e-4)

  def test_an_empty_box_has_no_deltas_and_no_gradient_that_is_not_finite(self):
    anchor = jnp.float32([[0, 0, 4, 4]])
    gradient = jax.grad(lambda box: boxes.encode(box, anchor).sum())(jnp.zeros((1, 4)))
    self.assertTrue(np.isfinite(gradient).all())
    np.testing.assert_array_equal(boxes.encode(jnp.zeros((1, 4)), anchor), np.zeros((1, 4)))
    huge = boxes.decode(jnp.full((1, 4), 1e4), anchor)
    self.assertTrue(np.isfinite(huge).all())

  def test_clipping_leaves_what_lies_inside(self):
    limits = jnp.float32([(20, 6, 20, 6), (4, 9, 4, 9)])
    clipped = boxes.clip(jnp.float32([(-3, 2, 50, 7), (4, -9, 5, -1)]), limits)
    np.testing.assert_array_equal(clipped, [(0, 2, 20, 6), (4, 0, 4, 0)])

  def test_anchors_stand_around_the_corners_of_cells(self):
    found = boxes.anchors((2, 3), (16, 8), (32,), (0.5, 1.0, 2.0))
    self.assertEqual(found.shape, (2 * 3 * 3, 4))
    np.testing.assert_array_equal(
      found[:3], [(-11, -23, 11, 23), (-16, -16, 16, 16), (-23, -11, 23, 11)]
    )
    np.testing.assert_array_equal(found[3 * 4 : 3 * 5] - found[:3], np.tile((16, 8), (3, 2)))


if __name__ == '__main__':
  absltest.main()
