import tempfile
from pathlib import Path

import numpy as np
from absl import logging
from absl.testing import absltest, parameterized
from PIL import Image

from seg_jax.data import instances, transforms
from seg_jax.data.datasets import base, sources
from seg_jax.data.label_map import LabelMap

MEAN = (0.485, 0.456, 0.406)


def box_of(mask):
  """y0, x0, y1, x1 by looking at every pixel."""
  inside = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
  ys, xs = zip(*inside, strict=True)
  return [min(ys), min(xs), max(ys) + 1, max(xs) + 1]


def random_masks(rng, count, size):
  """Rectangles of random places and sizes, most of which overlap."""
  masks = np.zeros((count, *size), bool)
  for mask in masks:
    top, left = (rng.integers(0, n - 3) for n in size)
    mask[top : top + rng.integers(2, size[0]), left : left + rng.integers(2, size[1])] = True
  return masks


def masks_of(record):
  """bool [K, H, W] from a record's id map, of however many layers."""
  ids = record['instances']
  layers = ids[..., None] if ids.ndim == 2 else ids
  return np.array([(layers == k + 1).any(-1) for k in range(len(record['classes']))])


def record_of(masks, rows):
  """A record whose label and depth tell the place: 10 y + x, and y + x / 100 metres."""
  y, x = np.indices(masks.shape[1:])
  return {
    'image': np.repeat((10 * y + x)[..., None], 3, -1).astype(np.uint8),
    'label': (10 * y + x).astype(np.uint8),
    'depth': (1 + y + x / 100).astype(np.float32),
    **instances.from_masks(masks, rows, masks.shape[1:]),
  }


class FromIdsTest(absltest.TestCase):
  def test_ids_become_rows_in_their_order_and_what_is_no_object_becomes_0(self):
    ids = np.array([[7, 26001, 26001], [26, 7, 0], [26000, 24003, 26]], np.uint16)
    meaning = {26000: (13, False), 26001: (13, False), 26: (13, True), 24003: (11, False)}
    record = instances.from_ids(ids, meaning.get)
    expected = [meaning[value] for value in (26, 24003, 26000, 26001)]
    self.assertEqual(record['classes'].tolist(), [row[0] for row in expected])
    self.assertEqual(record['is_crowd'].tolist(), [row[1] for row in expected])
    self.assertEqual(record['instances'].tolist(), [[0, 4, 4], [1, 0, 0], [3, 2, 1]])
    self.assertEqual(
      {key: array.dtype for key, array in record.items()},
      {'instances': np.int32, 'classes': np.int32, 'is_crowd': np.bool_},
    )

  def test_large_ids(self):
    ids = np.array([[2**31 - 1, 0], [256 * 256 * 255, 0]], np.int64)
    record = instances.from_ids(ids, lambda value: (1, False) if value else None)
    self.assertEqual(record['instances'].tolist(), [[2, 0], [1, 0]])

  def test_no_objects(self):
    record = instances.from_ids(np.full((3, 4), 9), lambda value: None)
    self.assertEqual(record['instances'].tolist(), [[0] * 4] * 3)
    self.assertEqual((record['classes'].shape, record['is_crowd'].shape), ((0,), (0,)))


class FromMasksTest(parameterized.TestCase):
  def test_objects_that_do_not_overlap_share_one_map(self):
    masks = np.zeros((3, 4, 6), np.uint8)
    masks[0, :2], masks[1, 2:, :3], masks[2, 2:, 3:] = 1, 255, 7
    record = instances.from_masks(masks, [(4, False), (2, True), (4, False)], (4, 6))
    self.assertEqual(record['instances'].tolist(), [[1] * 6] * 2 + [[2] * 3 + [3] * 3] * 2)
    self.assertEqual(record['classes'].tolist(), [4, 2, 4])
    self.assertEqual(record['is_crowd'].tolist(), [False, True, False])

  @parameterized.parameters(2, 9, 30)
  def test_nothing_is_lost_of_objects_that_overlap(self, count):
    for seed in range(5):
      masks = random_masks(np.random.default_rng(seed), count, (12, 15))
      rows = [(k % 7, k % 3 == 0) for k in range(count)]
      record = instances.from_masks(iter(masks), rows, (12, 15))
      np.testing.assert_array_equal(masks_of(record), masks)
      self.assertEqual(record['instances'].dtype, np.int32)
      # As many layers as objects on the fullest pixel are needed, and one for each is too many.
      fullest = masks.sum(0).max()
      layers = record['instances'].reshape(12, 15, -1).shape[-1]
      self.assertBetween(layers, fullest, count)

  def test_two_disjoint_pairs_need_two_layers_alone(self):
    masks = np.zeros((4, 4, 6), bool)
    masks[0, :, :3], masks[1, :, 1:4], masks[2, :, 3:], masks[3, :, 4:] = [True] * 4
    record = instances.from_masks(masks, [(1, False)] * 4, (4, 6))
    self.assertEqual(record['instances'].shape, (4, 6, 2))
    np.testing.assert_array_equal(masks_of(record), masks)

  def test_no_objects_and_an_object_without_pixels(self):
    record = instances.from_masks([], [], (3, 4))
    self.assertEqual(record['instances'].tolist(), [[0] * 4] * 3)
    masks = np.zeros((2, 3, 4), bool)
    masks[1, 1, 1] = True
    record = instances.from_masks(masks, [(1, False), (2, False)], (3, 4))
    np.testing.assert_array_equal(masks_of(record), masks)


class PaddedTest(parameterized.TestCase):
  def check(self, objects, masks, rows, max_instances):
    """`objects` are `masks` [K, H, W] of `rows`, in that order, and zeros behind them."""
    count = len(masks)
    self.assertEqual(
      {key: (array.dtype, array.shape) for key, array in objects.items()},
      {
        'boxes': (np.float32, (max_instances, 4)),
        'classes': (np.int32, (max_instances,)),
        'masks': (np.bool_, (max_instances, *objects['masks'].shape[1:])),
        'is_crowd': (np.bool_, (max_instances,)),
        'instance_valid': (np.bool_, (max_instances,)),
      },
    )
    self.assertEqual(
      objects['instance_valid'].tolist(), [True] * count + [False] * (max_instances - count)
    )
    for k, (mask, (kind, crowd)) in enumerate(zip(masks, rows, strict=True)):
      np.testing.assert_array_equal(objects['masks'][k], mask)
      self.assertEqual(objects['boxes'][k].tolist(), box_of(mask))
      self.assertEqual((objects['classes'][k], objects['is_crowd'][k]), (kind, crowd))
    for key, array in objects.items():
      self.assertFalse(array[count:].any(), key)

  @parameterized.parameters((1, 1), (3, 8), (12, 12), (12, 40))
  def test_boxes_masks_and_table_equal_brute_force(self, count, max_instances):
    rng = np.random.default_rng(count)
    masks = random_masks(rng, count, (17, 23))
    rows = [(int(rng.integers(0, 80)), bool(rng.random() < 0.5)) for _ in range(count)]
    record = instances.from_masks(masks, rows, (17, 23))
    self.check(instances.padded(record, max_instances), masks, rows, max_instances)

  def test_with_crowds_the_rest_of_each_class_is_one(self):
    masks = np.zeros((7, 8, 40), bool)
    for k, size in enumerate((5, 1, 3, 2, 4, 1, 2)):
      masks[k, :size, 5 * k : 5 * k + size] = True
    rows = [(k, False) for k in (2, 2, 1, 2, 1, 1, 2)]
    record = instances.from_masks(masks, rows, (8, 40))
    crowds = [masks[5], masks[1] | masks[3] | masks[6]]  # of class 1 and of class 2
    self.check(
      instances.padded(record, 5, crowds=True),
      [*crowds, masks[0], masks[2], masks[4]],
      [(1, True), (2, True), (2, False), (1, False), (1, False)],
      5,
    )
    self.check(
      instances.padded(record, 5),
      masks[[0, 2, 3, 4, 6]],
      [rows[k] for k in (0, 2, 3, 4, 6)],
      5,
    )
    one = instances.padded(record, 1, crowds=True)
    self.assertEqual((one['is_crowd'].tolist(), one['masks'].sum()), ([True], 26))

  def test_an_object_of_which_no_pixel_is_left_has_no_row(self):
    masks = random_masks(np.random.default_rng(0), 6, (20, 20))
    masks[2] = masks[4] = False
    rows = [(k, k % 2 == 0) for k in range(6)]
    objects = instances.padded(instances.from_masks(masks, rows, (20, 20)), 10)
    left = [0, 1, 3, 5]
    self.check(objects, masks[left], [rows[k] for k in left], 10)

  def test_of_too_many_the_largest_are_kept_in_their_order_and_it_is_said(self):
    masks = np.zeros((6, 10, 10), bool)
    for k, side in enumerate((3, 9, 1, 5, 2, 9)):
      masks[k, :side, :side] = True
    rows = [(k, False) for k in range(6)]
    record = instances.from_masks(masks, rows, (10, 10))
    with self.assertLogs(logging.get_absl_logger(), 'WARNING') as told:
      logging._log_counter_per_token.clear()
      for _ in range(3):
        objects = instances.padded(record, 3)
    self.assertLen(told.output, 1)
    self.assertIn('6 objects, of which the 3 largest', told.output[0])
    self.check(objects, masks[[1, 3, 5]], [rows[k] for k in (1, 3, 5)], 3)
    self.check(instances.padded(record, 1), masks[[1]], [rows[1]], 1)  # of equals the first

  @parameterized.parameters(((5, 4),), ((5, 4, 3),))
  def test_no_objects(self, shape):
    record = {
      'instances': np.zeros(shape, np.int32),
      'classes': np.zeros(0, np.int32),
      'is_crowd': np.zeros(0, bool),
    }
    self.check(instances.padded(record, 4), np.zeros((0, 5, 4)), [], 4)


class TransformsTest(parameterized.TestCase):
  """Through crop, flip and pad, on one layer and on many (OpenCV knows colours of up to four)."""

  def scene(self, seed, count, size=(21, 17)):
    masks = random_masks(np.random.default_rng(seed), count, size)
    record = record_of(masks, [(k, k % 3 == 0) for k in range(count)])
    for array in record.values():
      array.setflags(write=False)
    return masks, record

  def check_objects(self, record, masks):
    """The objects of a record are `masks`, less those without pixels, and boxes fit them."""
    np.testing.assert_array_equal(masks_of(record), masks)
    left = [k for k, mask in enumerate(masks) if mask.any()]
    objects = instances.padded(record, len(masks))
    self.assertEqual(objects['instance_valid'].sum(), len(left))
    for row, k in enumerate(left):
      np.testing.assert_array_equal(objects['masks'][row], masks[k])
      self.assertEqual(objects['boxes'][row].tolist(), box_of(masks[k]))
      self.assertEqual((objects['classes'][row], objects['is_crowd'][row]), (k, k % 3 == 0))

  @parameterized.parameters(1, 3, 12, 40)
  def test_pad_and_flip(self, count):
    layers = set()
    for seed in range(6):
      masks, record = self.scene(seed, count)
      layers.add(record['instances'].reshape(*masks.shape[1:], -1).shape[-1])
      result = transforms.pad(record, (2, 3, 0, 4), MEAN)
      self.check_objects(result, np.pad(masks, ((0, 0), (2, 3), (0, 4))))
      np.testing.assert_array_equal(result['depth'], np.pad(record['depth'], ((2, 3), (0, 4))))
      flips = 0
      for draw in range(8):
        result = transforms.random_flip(record, np.random.default_rng(draw))
        flipped = result['label'][0, 0] != record['label'][0, 0]
        flips += flipped
        step = -1 if flipped else 1
        self.check_objects(result, masks[:, :, ::step])
        np.testing.assert_array_equal(result['depth'], record['depth'][:, ::step])
      self.assertBetween(flips, 1, 7)
    if count == 40:
      self.assertGreater(min(layers), 4)

  @parameterized.product(count=(1, 3, 12, 40), image_scale=(0.6, 1.0, 1.7))
  def test_random_crop_moves_each_pixel_of_all_maps_alike(self, count, image_scale):
    """Depth tells from which pixel of the source each pixel comes, so what the masks have to be."""
    vanished = 0
    for seed in range(12):
      masks, record = self.scene(seed, count)
      result = transforms.random_crop(
        record,
        np.random.default_rng(seed),
        crop_size=(11, 13),
        image_scale=image_scale,
        scale_range=(0.8, 1.2),
        mean=MEAN,
      )
      depth = result['depth']
      known = depth > 0
      y = np.floor(depth - 1).astype(int) * known
      x = np.rint((depth - 1 - y) * 100).astype(int) * known
      self.assertContainsSubset(depth[known], record['depth'].ravel())
      np.testing.assert_array_equal(result['label'], np.where(known, (10 * y + x) % 256, 255))
      expected = masks[:, y, x] & known
      self.check_objects(result, expected)
      vanished += (~expected.any((1, 2))).sum()
    if count == 12 and image_scale > 1:
      self.assertGreater(vanished, 0)

  def test_files_of_overlapping_objects_come_through_to_a_batch(self):
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    masks = random_masks(np.random.default_rng(1), 7, (20, 24))
    for name in ('image.png', 'label.png'):
      Image.fromarray(np.zeros((20, 24), np.uint8)).save(folder / name)
    source = sources.FileSource(
      base.DatasetInfo('two', ('a', 'b'), np.zeros((2, 3), np.uint8)),
      [{'image': folder / 'image.png', 'label': folder / 'label.png', 'instances': masks}],
      LabelMap({0: 0}),
      folder,
      extras=('instances',),
      read_instances=lambda item, label: instances.from_masks(item, [(1, False)] * 7, label.shape),
    )
    np.testing.assert_array_equal(instances.padded(source[0], 7)['masks'], masks)


if __name__ == '__main__':
  absltest.main()
