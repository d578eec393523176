import colorsys
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from matplotlib.path import Path as Outline

from configs.common import get_config
from seg_jax.data.datasets import shapes
from seg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
EXTRAS = ('instances', 'depth')


def trace(seed, split, index, rows, columns):
  """Class, number and depth of the nearest surface that the ray of each pixel's centre meets.

  A brute-force oracle: planes from three of a contour's points, crossings of the projected outline.
  What is seen is numbered from far to near; what others hide altogether has no number.
  """
  rng = np.random.default_rng((seed, split, index))
  camera, cutouts = shapes._arrange(rng, rows, columns)
  y, x = np.mgrid[:rows, :columns] + 0.5
  pixels = np.stack([x.ravel(), y.ravel()], axis=-1)
  rays = np.concatenate(
    [(pixels - (camera.column, camera.horizon)) / camera.focal, np.ones((len(pixels), 1))], axis=-1
  )
  depth = camera.height / rays[:, 1]
  label, instances = np.zeros(len(rays), int), np.zeros(len(rays), int)
  for number, cutout in enumerate(cutouts, 1):
    points = cutout.contours[0]
    third = len(points) // 3
    normal = np.cross(points[third] - points[0], points[2 * third] - points[0])
    distance = normal @ points[0] / (rays @ normal)
    inside = np.zeros(len(rays), bool)
    for contour in cutout.contours:
      on_image = contour[:, :2] / contour[:, 2:] * camera.focal + (camera.column, camera.horizon)
      inside ^= Outline(on_image).contains_points(pixels)
    nearer = inside & (distance < depth)
    depth[nearer], label[nearer], instances[nearer] = distance[nearer], cutout.label, number
  seen = np.unique(instances[instances > 0])
  instances[instances > 0] = 1 + np.searchsorted(seen, instances[instances > 0])
  return [a.reshape(rows, columns) for a in (label, instances, depth)]


class ShapesTest(parameterized.TestCase):
  def test_splits_are_as_large_as_told(self):
    config = get_config('shapes').data
    for split, count in (('train', 2000), ('val', 200), ('test', 200)):
      source = shapes.open_split(config, split, seed=0)
      self.assertLen(source, count)
      self.assertEqual(source.names[12], f'{split}/000012')
      self.assertEqual(source.size(0), (96, 96))
      with self.assertRaises(IndexError):
        source[count]
    with self.assertRaisesRegex(UserError, "'valid'.*train, val, test"):
      shapes.open_split(config, 'valid', seed=0)

  def test_a_scene_depends_on_seed_split_and_index_alone(self):
    source = shapes.Shapes((96, 96), 'train', 0, EXTRAS)
    first = source[5]
    source[6]
    afresh = shapes.Shapes((96, 96), 'train', 0, EXTRAS)
    for again in (source, pickle.loads(pickle.dumps(source)), afresh):
      record = again[np.int64(5)]
      self.assertEqual(set(record), set(first))
      for key, array in record.items():
        np.testing.assert_array_equal(array, first[key])

  def test_instances_and_depth_are_there_when_asked_for_and_change_nothing_else(self):
    config = get_config('shapes').data
    plain = shapes.open_split(config, 'train', seed=0)[3]
    self.assertEqual(set(plain), {'image', 'label'})
    objects = {'instances', 'classes', 'is_crowd'}
    for extras, more in (
      (('instances',), objects),
      (('depth',), {'depth'}),
      (('depth', 'instances'), objects | {'depth'}),
    ):
      config.extras = extras
      record = shapes.open_split(config, 'train', seed=0)[3]
      self.assertEqual(set(record), {'image', 'label'} | more)
      for key, array in plain.items():
        np.testing.assert_array_equal(record[key], array)
    config.extras = ('normals',)
    with self.assertRaisesRegex(UserError, "'shapes' has no 'normals'; expected instances and dep"):
      shapes.open_split(config, 'train', seed=0)

  def test_another_process_draws_the_same(self):
    code = (
      'import zlib\nfrom seg_jax.data.datasets.shapes import Shapes\n'
      's = Shapes((40, 50), "val", 3)\nprint(zlib.crc32(s[7]["image"]), repr(s), sep=";")'
    )
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    source = shapes.Shapes((40, 50), 'val', 3)
    expected = f'{zlib.crc32(source[7]["image"])};{source!r}'
    self.assertEqual(out.stdout.strip(), expected)

  def test_scenes_of_other_seeds_splits_and_indices_differ(self):
    pictures, reprs = set(), set()
    for seed in (0, 1):
      for split in ('train', 'val', 'test'):
        source = shapes.Shapes((32, 32), split, seed)
        reprs.add(repr(source))
        pictures.update(source[i]['image'].tobytes() for i in range(20))
    self.assertLen(pictures, 2 * 3 * 20)
    self.assertLen(reprs, 2 * 3)

  @parameterized.parameters((96, 96), (61, 130), (130, 61), (16, 16), (40, 400), (300, 40), (1, 1))
  def test_any_size(self, rows, columns):
    source = shapes.Shapes((rows, columns), 'train', 0, EXTRAS)
    for i in range(10):
      record = source[i]
      count = record['instances'].max()
      self.assertEqual(
        {key: (array.dtype, array.shape) for key, array in record.items()},
        {
          'image': (np.uint8, (rows, columns, 3)),
          'label': (np.uint8, (rows, columns)),
          'instances': (np.int32, (rows, columns)),
          'classes': (np.int32, (count,)),
          'is_crowd': (np.bool_, (count,)),
          'depth': (np.float32, (rows, columns)),
        },
      )
      self.assertTrue(np.all(np.isfinite(record['depth']) & (record['depth'] > 0.5)))

  @parameterized.parameters((96, 96), (61, 130))
  def test_labels_instances_and_depth_are_those_of_rays_through_the_scene(self, rows, columns):
    source = shapes.Shapes((rows, columns), 'val', 4, EXTRAS)
    disagree = 0
    for i in range(20):
      record = source[i]
      label, instances, depth = trace(4, 1, i, rows, columns)
      same = record['instances'] == instances
      disagree += np.mean(~same)
      np.testing.assert_array_equal(record['label'][same], label[same])
      np.testing.assert_allclose(record['depth'][same], depth[same], rtol=1e-4)
      # A pixel belongs to what covers half of it, so only at an outline may its centre say else.
      around = np.lib.stride_tricks.sliding_window_view(np.pad(instances, 1, 'edge'), (3, 3))
      edge = np.ptp(around, axis=(2, 3)) > 0
      self.assertTrue(np.all(same | edge))
    self.assertLess(disagree / 20, 0.005)

  def test_an_instance_has_one_class_and_the_floor_is_background(self):
    source = shapes.Shapes((96, 96), 'train', 0, EXTRAS)
    for i in range(50):
      record = source[i]
      np.testing.assert_array_equal(record['instances'] == 0, record['label'] == 0)
      self.assertEqual(np.unique(record['instances']).tolist()[-1], len(record['classes']))
      for instance in np.unique(record['instances']):
        (label,) = np.unique(record['label'][record['instances'] == instance])
        self.assertEqual(label, record['classes'][instance - 1] if instance else 0)
      self.assertFalse(record['is_crowd'].any())

  def test_what_stands_on_the_floor_is_nearer_than_the_floor_behind_it(self):
    source = shapes.Shapes((96, 96), 'test', 0, EXTRAS)
    checked = 0
    for i in range(50):
      depth, floor = source[i]['depth'], source[i]['instances'] == 0
      for row in range(96):
        if floor[row].any():
          behind = depth[row][floor[row]]
          self.assertEqual(np.ptp(behind), 0)
          self.assertLessEqual(depth[row].max(), behind[0] * (1 + 1e-5))
          checked += 1
    self.assertGreater(checked, 2000)

  def test_every_class_is_frequent_and_colour_alone_misleads_at_times(self):
    source = shapes.Shapes((96, 96), 'train', 0, EXTRAS)
    pixels, right = np.zeros(7), []
    for i in range(150):
      record = source[i]
      pixels += np.bincount(record['label'].ravel(), minlength=7)
      for instance in np.unique(record['instances'])[1:]:
        mask = record['instances'] == instance
        if mask.sum() > 100:
          hue, *_ = colorsys.rgb_to_hsv(*np.median(record['image'][mask], axis=0) / 255)
          guess = round(hue * 6) or 6  # the class whose usual hue is nearest
          right.append(guess == record['label'][mask][0])
    share = pixels / pixels.sum()
    self.assertBetween(share[0], 0.6, 0.85)
    self.assertGreater(share[1:].min(), 0.015)
    self.assertBetween(np.mean(right), 0.5, 0.96)


if __name__ == '__main__':
  absltest.main()
