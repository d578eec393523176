import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops import nms
from tests.ops.boxes_test import random_boxes


def iou(a, b):
  height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
  width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
  shared = height * width
  union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
  return shared / union if union > 0 else 0.0


def one_after_the_other(boxes, scores, valid, threshold, groups):
  kept = []
  for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
    rivals = [j for j in kept if groups[j] == groups[i]]
    if valid[i] and all(iou(boxes[i], boxes[j]) <= threshold for j in rivals):
      kept.append(i)
  return np.isin(np.arange(len(boxes)), kept)


class NmsTest(parameterized.TestCase):
  @parameterized.product(threshold=(0.1, 0.5), classes=(1, 3))
  def test_keeps_what_one_after_the_other_keeps(self, threshold, classes):
    """Three pictures at once; equal scores, equal boxes, empty ones and invalid ones among them."""
    rng = np.random.default_rng(0)
    boxes = np.stack([random_boxes(60, seed) for seed in range(3)])
    scores = np.round(rng.uniform(size=(3, 60)), 1).astype(np.float32)
    valid, groups = rng.random((3, 60)) < 0.8, rng.integers(0, classes, (3, 60)).astype(np.int32)
    kept = jax.jit(nms.nms, static_argnums=3)(boxes, scores, valid, threshold, groups)
    for row, *picture in zip(np.asarray(kept), boxes, scores, valid, groups, strict=True):
      expected = one_after_the_other(*picture[:3], threshold, picture[3])
      np.testing.assert_array_equal(row, expected)
    self.assertBetween(float(np.mean(kept)), 0.1, 0.9)

  def test_a_long_chain(self):
    """Each suppresses the next, so every second one stays."""
    boxes = jnp.stack([jnp.arange(50.0), jnp.zeros(50), jnp.arange(50.0) + 3, jnp.ones(50)], -1)
    kept = nms.nms(boxes, -jnp.arange(50.0), jnp.ones(50, bool), 0.49)
    np.testing.assert_array_equal(kept, np.arange(50) % 2 == 0)

  def test_the_best_come_first_and_gaps_are_told(self):
    scores = jnp.float32([[0.1, 0.9, 0.5, 0.7]])
    valid = jnp.array([[True, False, True, True]])
    places, found = nms.best(scores, valid, 6)
    np.testing.assert_array_equal(places[0, :3], [3, 2, 0])
    np.testing.assert_array_equal(found, [[True, True, True, False, False, False]])


if __name__ == '__main__':
  absltest.main()
