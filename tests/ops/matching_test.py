import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops import boxes, matching
from tests.ops.boxes_test import random_boxes
from tests.ops.nms_test import iou


class MatchTest(parameterized.TestCase):
  @parameterized.product(thresholds=((0.3, 0.6), (0.5, 0.5)), best_of_each=(False, True))
  def test_equals_one_box_after_the_other(self, thresholds, best_of_each):
    rows, truth = random_boxes(200, 0), random_boxes(12, 1)
    valid, crowd = np.arange(12) < 10, np.isin(np.arange(12), (2, 7, 11))
    match = jax.jit(matching.match, static_argnums=(4, 5))
    matches = match(rows, truth, valid, crowd, thresholds, best_of_each)
    known = [m for m in range(12) if valid[m] and not crowd[m]]
    table = np.array([[iou(box, truth[m]) for m in known] for box in rows])
    for a, row in enumerate(table):
      wins = any(row[k] == table[:, k].max() > 0 for k in range(len(known)))
      positive = row.max() >= thresholds[1] or (best_of_each and wins)
      y0, x0, y1, x1 = rows[a]
      in_crowd = False
      for m in np.flatnonzero(valid & crowd):
        height = max(0, min(y1, truth[m][2]) - max(y0, truth[m][0]))
        width = max(0, min(x1, truth[m][3]) - max(x0, truth[m][1]))
        in_crowd |= height * width > 0.5 * max((y1 - y0) * (x1 - x0), 1e-6)
      self.assertEqual(bool(matches.positive[a]), positive, a)
      negative = row.max() < thresholds[0] and not positive and not in_crowd
      self.assertEqual(bool(matches.negative[a]), negative, a)
      if positive:
        self.assertEqual(int(matches.objects[a]), known[row.argmax()])
    self.assertGreater(np.sum(matches.positive), 1)
    self.assertGreater(np.sum(~matches.positive & ~matches.negative), 3)

  def test_each_object_has_an_anchor_in_a_large_program_too(self):
    """Where the compiler may compute an overlap twice, in two ways."""
    anchors = boxes.anchors((120, 160), (8, 8), (64,), (0.5, 1.0, 2.0))
    truth = np.stack([random_boxes(50, seed) * 20 for seed in range(3)])
    flags = np.ones((3, 50), bool)

    @jax.jit
    @jax.vmap
    def best(truth, valid):
      return matching.match(jnp.asarray(anchors), truth, valid, ~valid, (0.3, 2.0), True).positive

    positive = np.asarray(best(truth, flags))
    for picture, here in zip(truth, positive, strict=True):
      overlaps = np.asarray(boxes.iou(jnp.asarray(anchors), jnp.asarray(picture)))
      for k in np.flatnonzero(overlaps.max(0)):
        self.assertTrue(here[overlaps[:, k] >= overlaps[:, k].max() * (1 - 1e-6)].any(), k)

  def test_without_objects_all_is_background(self):
    nothing = jnp.zeros(3, bool)
    matches = matching.match(
      random_boxes(20), jnp.zeros((3, 4)), nothing, nothing, (0.3, 0.7), True
    )
    self.assertFalse(np.any(matches.positive))
    self.assertTrue(np.all(matches.negative))


class SampleTest(parameterized.TestCase):
  @parameterized.parameters((100, 30, 5), (100, 3, 60), (10, 3, 4), (100, 0, 50), (4, 60, 60))
  def test_draws_as_many_as_there_are_to_draw(self, count, positives, negatives):
    kinds = np.repeat([0, 1, 2], [positives, negatives, 40])
    np.random.default_rng(0).shuffle(kinds)
    matches = matching.Matches(
      jnp.zeros(len(kinds), jnp.int32), jnp.asarray(kinds == 0), jnp.asarray(kinds == 1)
    )
    positive, negative = matching.sample(jax.random.key(0), matches, count, 0.25)
    expected = min(positives, count // 4)
    self.assertEqual(np.sum(positive), expected)
    self.assertEqual(np.sum(negative), min(negatives, count - expected))
    self.assertFalse(np.any(positive & (kinds != 0)) or np.any(negative & (kinds != 1)))

  def test_all_are_drawn_as_often(self):
    positive = jnp.arange(40) < 20
    matches = matching.Matches(jnp.zeros(40, jnp.int32), positive, ~positive)
    draw = jax.vmap(lambda key: matching.sample(key, matches, 16, 0.25))
    drawn = jax.jit(draw)(jax.random.split(jax.random.key(0), 4000))
    for which, share in zip(drawn, (4 / 20, 12 / 20), strict=True):
      frequency = np.mean(which, 0)
      np.testing.assert_allclose(frequency[frequency > 0], share, atol=0.035)
      self.assertEqual(np.count_nonzero(frequency), 20)


if __name__ == '__main__':
  absltest.main()
