"""Merging beside the authors' script, panopticapi's, with masks for its run lengths."""

import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops import panoptic

DETECTIONS, STUFF, SIZE = 12, 3, (20, 24)
RULES = ('score', 'empty', 'overlap', 'partly', 'small', 'stuff')


@functools.partial(jax.jit, static_argnums=4)
def merged(*arguments):
  return panoptic.merge(*arguments)


def by_the_authors(masks, scores, found, stuff, num_stuff, score_threshold, overlap, min_area):
  """`combine_to_panoptic_single_core` of cocodataset/panopticapi; also how often each rule held."""
  segments, used = np.zeros(stuff.shape, int), np.zeros(stuff.shape, bool)
  rules = dict.fromkeys(RULES, 0)
  for k, mask in enumerate(masks):
    if not found[k]:
      continue
    if scores[k] < score_threshold:
      rules['score'] += 1
      continue
    area = mask.sum()
    if area == 0:
      rules['empty'] += 1
      continue
    intersect = (used & mask).sum()
    if intersect / area > overlap:
      rules['overlap'] += 1
      continue
    rules['partly'] += intersect > 0
    used |= mask
    segments[mask & (segments == 0)] = k + 1
  for k in range(1, num_stuff + 1):
    left = (stuff == k) & (segments == 0)
    if left.sum() < min_area:
      rules['small'] += 1
      continue
    rules['stuff'] += 1
    segments[left] = len(masks) + k
  return segments, rules


def pictures(seed, count=6):
  """Rectangles, some twice, some empty, with equal scores among them, on strips of stuff."""
  rng = np.random.default_rng(seed)
  masks = np.zeros((count, DETECTIONS, *SIZE), bool)
  for n, k in np.ndindex(count, DETECTIONS):
    y, x, h, w = rng.integers(0, (14, 18, 11, 13))
    masks[n, k, y : y + h, x : x + w] = True
  masks[:, 4] = masks[:, 2]
  scores = -np.sort(-np.round(rng.uniform(size=(count, DETECTIONS)), 1), -1)
  found = rng.random((count, DETECTIONS)) < 0.8
  stuff = rng.choice(STUFF + 1, (count, 5, SIZE[1]), p=(0.2, 0.5, 0.2, 0.1)).repeat(4, 1)
  return masks, scores.astype(np.float32), found, stuff.astype(np.int32)


def square(y, x, rows, columns):
  mask = np.zeros(SIZE, bool)
  mask[y : y + rows, x : x + columns] = True
  return mask


class MergeTest(parameterized.TestCase):
  @parameterized.parameters((0.5, 0.5, 40), (0.3, 0.25, 60), (0.0, 0.9, 0))
  def test_equals_the_authors(self, score_threshold, overlap, min_area):
    thresholds = np.float32(score_threshold), np.float32(overlap), np.int32(min_area)
    seen = dict.fromkeys(RULES, 0)
    for picture in zip(*pictures(seed=0), strict=True):
      expected, rules = by_the_authors(*picture, STUFF, *thresholds)
      segments = merged(*picture, STUFF, *thresholds)
      self.assertEqual(segments.dtype, np.int32)
      np.testing.assert_array_equal(segments, expected)
      seen = {rule: seen[rule] + times for rule, times in rules.items()}
    never = {rule for rule, times in seen.items() if not times}
    self.assertEqual(never, set() if score_threshold else {'score', 'small'})

  @parameterized.parameters(False, True)
  def test_all_or_none_found(self, found):
    masks, scores, _, stuff = (x[0] for x in pictures(seed=1))
    arguments = masks, np.ones_like(scores), np.full(DETECTIONS, found), stuff, STUFF
    thresholds = np.float32(0.5), np.float32(0.5), np.int32(10)
    expected, _ = by_the_authors(*arguments, *thresholds)
    segments = merged(*arguments, *thresholds)
    np.testing.assert_array_equal(segments, expected)
    self.assertEqual(bool(((segments > 0) & (segments <= DETECTIONS)).any()), found)

  def test_what_is_just_enough_stays(self):
    """The default thresholds: a score of 0.5, half of a mask taken, as many pixels of stuff."""
    masks = np.zeros((DETECTIONS, *SIZE), bool)
    masks[0] = square(0, 0, 4, 4)
    masks[1] = square(0, 2, 4, 4)  # half is taken
    masks[2] = square(0, 0, 3, 5) | square(19, 0, 1, 14)  # 15 of 29 are
    masks[3] = square(10, 0, 2, 2)
    masks[4] = square(15, 0, 2, 2)
    scores = np.float32([0.9, 0.9, 0.8, 0.5, *[0.49] * (DETECTIONS - 4)])
    found = np.ones(DETECTIONS, bool)
    stuff = np.zeros(SIZE, np.int32)
    stuff[:10, 10:20], stuff[10:, 10:] = 1, 2
    expected = np.zeros(SIZE, int)
    expected[stuff == 1], expected[stuff == 2] = DETECTIONS + 1, DETECTIONS + 2
    for k in (3, 1, 0):
      expected[masks[k]] = k + 1
    merge = jax.jit(panoptic.merge, static_argnames=('num_stuff',))
    segments = merge(masks, scores, found, stuff, STUFF, min_stuff_area=np.int32(100))
    np.testing.assert_array_equal(segments, expected)
    segments = merge(masks, scores, found, stuff, STUFF, min_stuff_area=np.int32(101))
    np.testing.assert_array_equal(segments, np.where(expected == DETECTIONS + 1, 0, expected))

  def test_many_pictures_at_once(self):
    batch = pictures(seed=2, count=3)
    together = jax.vmap(lambda *picture: panoptic.merge(*picture, STUFF, min_stuff_area=30))(*batch)
    for segments, *picture in zip(together, *batch, strict=True):
      expected, _ = by_the_authors(*picture, STUFF, 0.5, 0.5, 30)
      np.testing.assert_array_equal(segments, expected)


if __name__ == '__main__':
  absltest.main()
