import numpy as np
from absl.testing import absltest, parameterized
from pycocotools import mask as coco_mask

from seg_jax.data.polygons import segmentation_mask


def run_lengths(mask):
  """COCO's unpacked run lengths, by walking over the pixels, column after column."""
  counts, current = [0], False
  for pixel in mask.T.ravel().tolist():
    if pixel != current:
      counts.append(0)
      current = pixel
    counts[-1] += 1
  return counts


def inside_and_near(polygon, rows, columns):
  """Which pixels' centres lie inside, by crossings; and which lie within a pixel of an edge."""
  points = np.array(polygon).reshape(-1, 2)
  y, x = np.mgrid[:rows, :columns] + 0.5
  inside, near = np.zeros((rows, columns), bool), np.zeros((rows, columns), bool)
  for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
    if y0 != y1:
      crosses = (y0 <= y) != (y1 <= y)
      inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
    along = along.clip(0, 1)
    near |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) < 1
  return inside, near


class PolygonsTest(parameterized.TestCase):
  @parameterized.parameters(*range(5))
  def test_polygon_holds_the_pixels_inside_and_none_outside(self, seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(8, 24, 9)
    polygon = np.stack([30 + radii * np.cos(angles), 25 + radii * np.sin(angles)], -1)
    mask = segmentation_mask([polygon.ravel().tolist()], 50, 60)
    inside, near = inside_and_near(polygon, 50, 60)
    self.assertEqual((mask.dtype, mask.shape), (np.dtype(bool), (50, 60)))
    self.assertGreater((inside & ~near).sum(), 50)
    np.testing.assert_array_equal(mask[~near], inside[~near])

  def test_several_polygons_are_their_union_and_may_leave_the_picture(self):
    square, other = [1, 1, 4, 1, 4, 4, 1, 4], [3, 2, 12, 2, 12, 3, 3, 3]
    expected = np.zeros((6, 8), bool)
    expected[1:4, 1:4] = True
    expected[2, 3:] = True
    np.testing.assert_array_equal(segmentation_mask([square, other], 6, 8), expected)

  @parameterized.product(seed=[*range(6)], form=('unpacked', 'packed', 'packed text'))
  def test_run_lengths_are_the_mask_they_were_made_from(self, seed, form):
    rng = np.random.default_rng(seed)
    mask = rng.random((37, 211)) < rng.choice([0.0005, 0.02, 0.5, 1.0])
    runs = {'size': [37, 211], 'counts': run_lengths(mask)}
    if form != 'unpacked':
      runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
      self.assertIsInstance(runs['counts'], bytes)
      if form == 'packed text':
        runs['counts'] = runs['counts'].decode()
    np.testing.assert_array_equal(segmentation_mask(runs, 37, 211), mask)

  def test_long_runs_are_unpacked(self):
    """Runs of more than 15 bits, each the difference to the last but one, of either sign."""
    mask = np.zeros((1500, 700), bool)
    mask[:, 100] = mask[3, 300:302] = mask[:, 650:] = True
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    np.testing.assert_array_equal(segmentation_mask(runs, 1500, 700), mask)

  def test_runs_of_no_pixels_are_taken(self):
    runs = {'size': [2, 3], 'counts': [0, 2, 0, 1, 3, 0]}
    np.testing.assert_array_equal(segmentation_mask(runs, 2, 3), [[1, 1, 0], [1, 0, 0]])

  @parameterized.named_parameters(
    ('odd', [[0, 0, 5, 0, 5, 5, 1]], 'three points or more'),
    ('two points', [[0, 0, 5, 5]], 'three points or more'),
    ('one good and one bad', [[0, 0, 5, 0, 5, 5], [1, 2]], 'polygon .1, 2.; expected a list'),
    ('pairs', [[[0, 0]] * 6], 'expected a list x0, y0'),
    ('not in lists', [0, 0, 5, 0, 5, 5], 'polygon 0; expected a list'),
    ('text', [['a', 0, 5, 0, 5, 5]], 'expected a list'),
    ('null', [[None, 0, 5, 0, 5, 5]], 'expected'),
    ('not a number', [[float('nan'), 0, 5, 0, 5, 5]], 'expected finite coordinates'),
    ('too far', [[0, 0, 1e12, 0, 5, 5]], 'expected finite coordinates in pixels'),
    ('no polygons', [], 'expected polygons or run lengths'),
    ('nothing', None, 'expected polygons or run lengths'),
    ('a word', 'abc', 'expected polygons or run lengths'),
    ('other size', {'size': [8, 9], 'counts': [72]}, 'size .8, 9.; expected .8, 8.'),
    ('no size', {'counts': [64]}, 'size None'),
    ('too few', {'size': [8, 8], 'counts': [1, 2]}, 'of 3 pixels; expected 64'),
    ('too many', {'size': [8, 8], 'counts': [60, 5]}, 'of 65 pixels; expected 64'),
    ('negative', {'size': [8, 8], 'counts': [-1, 65]}, 'expected a list of numbers'),
    ('fractions', {'size': [8, 8], 'counts': [1.5, 62.5]}, 'expected a list of numbers'),
    ('no counts', {'size': [8, 8]}, 'expected a list of numbers'),
    ('packed too few', {'size': [8, 8], 'counts': '12'}, 'of 3 pixels; expected 64'),
    ('packed broken off', {'size': [8, 8], 'counts': 'P'}, 'break off'),
    ('packed with blanks', {'size': [8, 8], 'counts': 'P2 '}, "character ' '"),
  )
  def test_malformed_is_told(self, segmentation, message):
    with self.assertRaisesRegex(ValueError, message):
      segmentation_mask(segmentation, 8, 8)


if __name__ == '__main__':
  absltest.main()
