import math

import cv2
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data import transforms

MEAN = (0.485, 0.456, 0.406)
COLOUR = (124, 116, 104)


def make_record(height, width, seed=0):
  """Random arrays that nobody may write to, as those of a cache."""
  rng = np.random.default_rng(seed)
  record = {
    'image': rng.integers(0, 256, (height, width, 3), np.uint8),
    'label': rng.integers(0, 12, (height, width), np.uint8),
    'instances': rng.integers(1, 2**31 - 1, (height, width), np.int32),
    'depth': rng.uniform(1, 80, (height, width)).astype(np.float32),
  }
  for array in record.values():
    array.setflags(write=False)
  return record


def crop(record, seed, crop_size, image_scale=1.0, scale_range=(1.0, 1.0)):
  return transforms.random_crop(
    record,
    np.random.default_rng(seed),
    crop_size=crop_size,
    image_scale=image_scale,
    scale_range=scale_range,
    mean=MEAN,
  )


def padded(record, rows, columns):
  """The record with `rows` above and below and `columns` left and right, by NumPy."""
  margins = (rows, rows), (columns, columns)
  image = np.stack(
    [np.pad(record['image'][..., c], margins, constant_values=COLOUR[c]) for c in range(3)], -1
  )
  label = np.pad(record['label'], margins, constant_values=255)
  others = {key: np.pad(record[key], margins) for key in ('instances', 'depth')}
  return {'image': image, 'label': label, **others}


def edge_record(size, edge, axis):
  """White and class 1 from row or column `edge` on, before it black and class 0."""
  label = np.zeros((size, size), np.uint8)
  label[(slice(None),) * axis + (slice(edge, None),)] = 1
  return {'image': np.repeat(label[..., None] * np.uint8(255), 3, -1), 'label': label}


class RandomCropTest(parameterized.TestCase):
  @parameterized.parameters((9, 11, 6, 7), (9, 11, 9, 11), (5, 6, 9, 8), (5, 14, 9, 8))
  def test_zoom_one_is_a_plain_window_of_the_padded_record(self, height, width, rows, columns):
    record = make_record(height, width)
    oracle = padded(record, rows, columns)
    found = set()
    for seed in range(150):
      result = crop(record, seed, (rows, columns))
      matches = [
        (top - rows, left - columns)
        for top in range(height + rows + 1)
        for left in range(width + columns + 1)
        if np.array_equal(
          oracle['instances'][top : top + rows, left : left + columns], result['instances']
        )
      ]
      self.assertLen(matches, 1)
      ((top, left),) = matches
      found.add((top, left))
      for key, array in oracle.items():
        window = array[top + rows : top + 2 * rows, left + columns : left + 2 * columns]
        np.testing.assert_array_equal(result[key], window, err_msg=key)

    tops = range(min(0, height - rows), max(0, height - rows) + 1)
    lefts = range(min(0, width - columns), max(0, width - columns) + 1)
    self.assertEqual(found, {(top, left) for top in tops for left in lefts})

  @parameterized.product(
    size=((31, 47), (64, 64)), crop_size=((24, 40), (33, 17), (1, 1)), image_scale=(0.4, 1.0, 2.3)
  )
  def test_size_and_types_are_exact_and_values_are_never_mixed(self, size, crop_size, image_scale):
    record = make_record(*size)
    for seed in range(20):
      result = crop(record, seed, crop_size, image_scale, (0.5, 2.0))
      self.assertEqual(set(result), set(record))
      for key, array in result.items():
        self.assertEqual(array.shape[:2], crop_size)
        self.assertEqual(array.dtype, record[key].dtype)
      for key, fill in (('label', 255), ('instances', 0), ('depth', 0)):
        self.assertContainsSubset(np.unique(result[key]), [*np.unique(record[key]), fill])

  @parameterized.product(image_scale=(0.3, 0.51, 0.9, 1.1, 1.73, 4.0), axis=(0, 1))
  def test_edges_of_image_and_label_agree(self, image_scale, axis):
    size = math.ceil(45 / 0.95 / image_scale)  # there is no padding, which is no class of the image
    edges_seen = 0
    for seed in range(30):
      record = edge_record(size, int(np.random.default_rng(seed).integers(1, size)), axis)
      result = crop(record, seed, (37, 45), image_scale, (0.95, 1.05))
      brightness = result['image'][..., 0].astype(int)
      # A pixel is more than half white where its centre lies behind the edge; 4 for rounding.
      certain = abs(brightness - 127.5) > 4
      np.testing.assert_array_equal(brightness[certain] > 127, result['label'][certain])
      edges_seen += len(np.unique(result['label'])) > 1
    self.assertGreater(edges_seen, 15)

  @parameterized.product(zoom=(0.4, 0.8, 1.3, 3.1), axis=(0, 1))
  def test_nearest_pixels_lie_within_half_a_pixel_of_the_image(self, zoom, axis):
    coordinate = np.indices((48, 48), np.uint8)[axis]
    record = {
      'image': np.repeat(5 * coordinate[..., None], 3, -1),
      'label': coordinate,
      'instances': coordinate.astype(np.int32),
      'depth': coordinate.astype(np.float32),
    }
    size = round(40 * zoom)
    for seed in range(10):
      result = crop(record, seed, (size, size), zoom)
      place = result['image'][2:-2, 2:-2, 0] / 5  # linear stops at the crop's border
      for key in ('label', 'instances', 'depth'):
        difference = place - result[key][2:-2, 2:-2]
        self.assertLessEqual(abs(difference).max(), 0.5 + 0.5 / 5 + 1e-6)  # the image is rounded
        self.assertLess(abs(difference.mean()), 0.1)

  @parameterized.parameters(0.55, 0.65, 0.75, 0.85)
  def test_shrinking_is_close_to_the_triangle_filter_of_pillow(self, zoom):
    noise = np.random.default_rng(0).uniform(0, 255, (120, 160, 3)).astype(np.float32)
    image = cv2.GaussianBlur(noise, (0, 0), 0.7).astype(np.uint8)  # a spectrum like a photograph's
    size = round(120 * zoom), round(160 * zoom)
    record = {'image': image, 'label': image[..., 0]}
    result = crop(record, 0, size, zoom)['image'].astype(float)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    aliased = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    difference = abs(result - expected).mean()
    self.assertLess(difference, 3)
    self.assertLess(difference, 0.8 * abs(aliased.astype(float) - expected).mean())
    self.assertAlmostEqual(result.mean(), image.mean(), delta=0.5)

  def test_shrinking_averages_over_areas(self):
    record = make_record(16, 24)
    result = crop(record, 0, (8, 12), image_scale=0.5)
    blocks = record['image'].reshape(8, 2, 12, 2, 3).mean((1, 3))
    self.assertLessEqual(abs(result['image'] - blocks).max(), 0.5)

  def test_zoom_is_log_uniform_times_image_scale(self):
    columns = np.tile(np.arange(1000, dtype=np.float32), (300, 1))
    record = {
      'image': np.zeros((300, 1000, 3), np.uint8),
      'label': np.zeros((300, 1000), np.uint8),
      'depth': columns,
    }
    zooms = []
    rng = np.random.default_rng(0)
    for _ in range(400):
      result = transforms.random_crop(
        record, rng, crop_size=(100, 200), image_scale=2.0, scale_range=(0.5, 2.0), mean=MEAN
      )
      zooms.append((200 - 1) / np.ptp(result['depth'][0]))
    share = np.log(zooms) / math.log(4)  # from 2 * 0.5 to 2 * 2, so uniform in [0, 1]
    self.assertBetween(share.min(), -0.02, 0.05)
    self.assertBetween(share.max(), 0.95, 1.02)
    np.testing.assert_allclose(np.quantile(share, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.08)


class RandomFlipTest(absltest.TestCase):
  def test_every_array_is_mirrored_one_time_in_two(self):
    record = make_record(6, 9)
    flips = 0
    for seed in range(200):
      result = transforms.random_flip(record, np.random.default_rng(seed))
      flipped = not np.array_equal(result['label'], record['label'])
      flips += flipped
      for key, array in record.items():
        np.testing.assert_array_equal(result[key], array[:, ::-1] if flipped else array)
    self.assertBetween(flips, 75, 125)


class AugmentTest(absltest.TestCase):
  def config(self, **changes):
    data = get_config().data
    data.crop_size = (30, 44)
    data.update(changes)
    return data

  def test_same_generator_same_record_and_the_input_stays(self):
    record = make_record(50, 60)
    before = {key: array.copy() for key, array in record.items()}
    first, second = (
      transforms.augment(record, np.random.default_rng(3), self.config()) for _ in range(2)
    )
    other = transforms.augment(record, np.random.default_rng(4), self.config())
    for key, array in record.items():
      np.testing.assert_array_equal(array, before[key])
      np.testing.assert_array_equal(first[key], second[key])
      self.assertFalse(np.array_equal(first[key], other[key]))
      self.assertEqual(first[key].shape[:2], (30, 44))

  def test_each_setting_has_its_effect(self):
    ramp = np.tile(np.arange(60, dtype=np.uint8), (50, 1))
    record = {'image': cv2.merge([ramp] * 3), 'label': ramp}
    still = {'flip': False, 'scale_range': (1.0, 1.0), 'image_scale': 1.0}

    def results(**changes):
      data = self.config(**(still | changes))
      return [transforms.augment(record, np.random.default_rng(i), data) for i in range(20)]

    def slopes(augmented):
      return {int(r['label'][0, 20]) - int(r['label'][0, 19]) for r in augmented}

    self.assertEqual(slopes(results()), {1})
    self.assertEqual(slopes(results(flip=True)), {1, -1})
    self.assertEqual({int(np.ptp(r['label'])) for r in results(image_scale=2.0)}, {21})
    self.assertGreater(len({int(np.ptp(r['label'])) for r in results(scale_range=(1, 3))}), 5)
    for r in results():
      np.testing.assert_array_equal(r['image'][..., 0], r['label'])


class MeanColourTest(absltest.TestCase):
  def test_is_the_nearest_uint8(self):
    colour = transforms.mean_colour(MEAN)
    self.assertEqual(colour.dtype, np.uint8)
    self.assertEqual(tuple(colour), COLOUR)
    self.assertEqual(tuple(transforms.mean_colour((0.0, 1.0, 0.5))), (0, 255, 128))


if __name__ == '__main__':
  absltest.main()
