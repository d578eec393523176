import io
import pickle
import subprocess
import sys
import tempfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from absl import logging
from absl.testing import absltest, parameterized
from PIL import ExifTags, Image, ImageOps

from seg_jax.data.datasets import base, sources
from seg_jax.data.instances import from_ids
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / 'shared' / 'data'
INFO = base.DatasetInfo('two', ('a', 'b'), np.zeros((2, 3), np.uint8))


class Counting:
  """Records of 4 x 5 that count how often they are made."""

  info = INFO
  names = tuple(f'{i}.png' for i in range(6))

  def __init__(self):
    self.made = 0

  def __len__(self):
    return 6

  def __getitem__(self, index):
    self.made += 1
    image = np.full((4, 5, 3), index, np.uint8)
    return {'image': image, 'label': image[..., 0].copy()}

  def size(self, index):
    if index == 5:
      raise UserError('damaged')
    return 4, 5

  def __repr__(self):
    return 'Counting()'


class FileSourceTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    (self.root / 'i').mkdir()
    rng = np.random.default_rng(0)
    self.image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    self.label = rng.integers(0, 2, (6, 8), dtype=np.uint8)

  def source(self, image, label):
    Image.fromarray(image).save(self.root / 'i/x.png')
    Image.fromarray(label).save(self.root / 'x_mask.png')
    records = [{'image': self.root / 'i/x.png', 'label': self.root / 'x_mask.png'}]
    return sources.FileSource(INFO, records, LabelMap({0: 0, 1: 1}), self.root)

  def test_records_names_and_sizes(self):
    source = self.source(self.image, self.label)
    np.testing.assert_array_equal(source[0]['image'], self.image)
    np.testing.assert_array_equal(source[0]['label'], self.label)
    self.assertEqual((len(source), source.names, source.size(0)), (1, ['i/x.png'], (6, 8)))
    with self.assertRaises(IndexError):
      source[1]

  def test_picture_and_mask_of_different_sizes(self):
    source = self.source(self.image, self.label[:, :7])
    with self.assertRaises(UserError) as caught:
      source[0]
    for part in (self.root / 'i/x.png', self.root / 'x_mask.png', '6 x 8', '6 x 7'):
      self.assertIn(str(part), str(caught.exception))

  def test_a_pickle_reads_the_same(self):
    source = self.source(self.image, self.label)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0]['label'], self.label)
    self.assertEqual(repr(again), repr(source))

  def test_repr_is_the_same_in_another_process_and_directory_but_not_for_other_files(self):
    code = (
      'from pathlib import Path\n'
      'from seg_jax.data.datasets import camvid\n'
      'from seg_jax.data.datasets.sources import FileSource\n'
      'for name in "ab":\n'
      '  files = [{"image": Path(f"/elsewhere/{name}.png"), "label": Path("m.png")}]\n'
      '  print(FileSource(camvid.INFO, files, camvid.LABELS, Path("/elsewhere")))'
    )
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    from seg_jax.data.datasets import camvid

    records = [{'image': self.root / 'a.png', 'label': self.root / 'm.png'}]
    here = repr(sources.FileSource(camvid.INFO, records, camvid.LABELS, self.root))
    there, other = out.stdout.split('\n')[:2]
    self.assertEqual(here, there)
    self.assertNotEqual(here, other)


class TurnedPictureTest(parameterized.TestCase):
  """A photograph that EXIF says is stored on its side; its mask was drawn on either version."""

  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    rng = np.random.default_rng(0)
    self.upright = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    self.label = rng.integers(0, 3, (6, 9), dtype=np.uint8)

  def stored(self, array, orientation):
    """`array` as a camera stores it: whatever turns it upright again, as Pillow does it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for k in range(8):
      turned = np.rot90(array[:, ::-1] if k >= 4 else array, k % 4)
      file = io.BytesIO()
      Image.fromarray(turned).save(file, 'PNG', exif=exif)
      if np.array_equal(ImageOps.exif_transpose(Image.open(file)), array):
        return turned, exif
    raise AssertionError(orientation)

  def source(self, orientation, label, **objects):
    pixels, exif = self.stored(self.upright, orientation)
    Image.fromarray(pixels).save(self.root / 'x.png', exif=exif)
    Image.fromarray(label).save(self.root / 'm.png')
    record = {'image': self.root / 'x.png', 'label': self.root / 'm.png'} | objects
    return sources.FileSource(
      INFO,
      [record],
      LabelMap({0: 0, 1: 1, 2: 255}),
      self.root,
      extras=tuple(objects),
      read_instances=lambda ids, label: from_ids(ids, lambda k: (1, False) if k else None),
      read_depth=lambda depth: depth,
    )

  @parameterized.parameters(*range(1, 9))
  def test_an_upright_mask_stays(self, orientation):
    record = self.source(orientation, self.label)[0]
    np.testing.assert_array_equal(record['image'], self.upright)
    np.testing.assert_array_equal(record['label'], np.where(self.label == 2, 255, self.label))

  @parameterized.parameters(5, 6, 7, 8)
  def test_what_was_drawn_on_the_stored_picture_is_turned_with_it_and_that_is_said(
    self, orientation
  ):
    ids = np.random.default_rng(1).integers(0, 4, (6, 9))
    depth = np.random.default_rng(2).uniform(1, 9, (6, 9)).astype(np.float32)
    on_side = [self.stored(a, orientation)[0] for a in (self.label, ids.astype(np.uint8))]
    depth_on_side = self.turn_back(depth, orientation)
    logging._log_counter_per_token.clear()
    source = self.source(orientation, on_side[0], instances=on_side[1], depth=depth_on_side)
    with self.assertLogs(logging.get_absl_logger(), 'WARNING') as told:
      record = source[0]
      source[0]
    self.assertEqual(source.size(0), (6, 9))
    np.testing.assert_array_equal(record['image'], self.upright)
    np.testing.assert_array_equal(record['label'], np.where(self.label == 2, 255, self.label))
    np.testing.assert_array_equal(record['instances'], ids)
    np.testing.assert_array_equal(record['depth'], depth)
    self.assertEqual(record['classes'].tolist(), [1, 1, 1])
    self.assertLen(told.output, 1)
    self.assertIn(f'{self.root / "x.png"} is stored on its side', told.output[0])

  def turn_back(self, array, orientation):
    """As `stored`, of the places of the pixels instead of their values."""
    places = np.arange(array.size, dtype=np.uint8).reshape(array.shape)
    return array.ravel()[self.stored(places, orientation)[0]]

  def test_a_mask_with_an_orientation_of_its_own(self):
    pixels, exif = self.stored(self.label, 6)
    source = self.source(6, self.label)
    Image.fromarray(pixels).save(self.root / 'm.png', exif=exif)
    np.testing.assert_array_equal(source[0]['label'], np.where(self.label == 2, 255, self.label))

  @parameterized.parameters((1, (9, 6)), (3, (9, 6)), (6, (9, 5)), (6, (12, 18)))
  def test_a_mask_of_another_size_is_refused_where_turning_is_not_what_it_lacks(
    self, orientation, size
  ):
    source = self.source(orientation, np.zeros(size, np.uint8))
    with self.assertRaisesRegex(UserError, f'6 x 9 .*{size[0]} x {size[1]}; expected the same'):
      source[0]


class ExtrasTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in ('x', 'y'):
      Image.new('RGB', (5, 4)).save(self.root / f'{name}.png')
      Image.new('L', (5, 4)).save(self.root / f'{name}_m.png')

  def source(self, **options):
    records = [
      {
        'image': self.root / f'{name}.png',
        'label': self.root / f'{name}_m.png',
        'instances': self.root / f'{name}_i.png',  # which is not there
        'depth': (2.5, name),
      }
      for name in ('x', 'y')
    ]
    return sources.FileSource(INFO, records, LabelMap({0: 0}), self.root, **options)

  def test_only_what_is_asked_for_is_read(self):
    def fail(*args):
      raise AssertionError(args)

    source = self.source(read_instances=fail, read_depth=fail)
    self.assertEqual(set(source[0]), {'image', 'label'})
    depth = self.source(
      extras=('depth',),
      read_instances=fail,
      read_depth=lambda item: np.full((4, 5), item[0], np.float32),
    )
    record = depth[1]
    self.assertEqual(set(record), {'image', 'label', 'depth'})
    np.testing.assert_array_equal(record['depth'], np.full((4, 5), 2.5))

  def test_instances_are_told_the_label_of_their_record(self):
    told = []

    def read(item, label):
      told.append((item, label.shape))
      return from_ids(label, lambda k: None)

    self.source(extras=('instances',), read_instances=read)[1]
    self.assertEqual(told, [(self.root / 'y_i.png', (4, 5))])

  def test_what_a_dataset_lacks_is_told_with_what_it_has(self):
    with self.assertRaisesRegex(UserError, "data.extras: 'two' has no 'depth'; expected nothing"):
      self.source(extras=('depth',))
    with self.assertRaisesRegex(UserError, "has no 'depth'; expected instances"):
      self.source(extras=('instances', 'depth'), read_instances=max)

  def test_depth_of_another_size_is_refused_with_what_its_file_is_called(self):
    source = self.source(extras=('depth',), read_depth=lambda item: np.ones((4, 6), np.float32))
    with self.assertRaisesRegex(UserError, r'x\.png has 4 x 5 .* and its depth 2\.5 4 x 6'):
      source[0]

  def test_raw_values_are_those_before_the_label_map(self):
    source = self.source(read_raw=lambda path: np.array([[0, 7], [7, 7]], np.uint16))
    self.assertEqual(source.raw_values(0), {'0': 1, '7': 3})


class CachedSourceTest(absltest.TestCase):
  def test_a_record_is_made_once_and_cannot_be_changed(self):
    source = Counting()
    cache = sources.CachedSource(source)
    for _ in range(3):
      self.assertEqual(cache[2]['label'].tolist(), [[2] * 5] * 4)
    self.assertEqual(source.made, 1)
    with self.assertRaises(ValueError):
      cache[2]['image'][0] = 9
    cache[2]['image'] = None  # the caller's dict, not the cache's
    self.assertIsNotNone(cache[2]['image'])

  def test_it_stands_for_its_source(self):
    cache = sources.CachedSource(Counting())
    self.assertEqual((len(cache), cache.names, cache.info), (6, Counting.names, INFO))
    self.assertEqual((cache.size(0), repr(cache)), ((4, 5), 'Counting()'))

  def test_a_pickle_leaves_the_records_behind(self):
    cache = sources.CachedSource(Counting())
    empty = len(pickle.dumps(cache))
    for i in range(6):
      cache[i]
    self.assertLess(len(pickle.dumps(cache)), empty + 8)
    self.assertEqual(pickle.loads(pickle.dumps(cache))[3]['label'][0, 0], 3)

  def test_threads_get_the_right_records(self):
    cache = sources.CachedSource(Counting())
    order = np.random.default_rng(0).integers(0, 6, 500)
    with ThreadPool(8) as pool:
      values = pool.map(lambda i: cache[i]['label'][0, 0], order)
    self.assertEqual(values, order.tolist())

  def test_a_source_is_cached_only_if_all_of_it_fits(self):
    needed = 5 * (4 * 5 * 4) / 2**30  # a sixth record's header cannot be read
    source = Counting()
    self.assertIsInstance(sources.cached(source, needed), sources.CachedSource)
    self.assertIs(sources.cached(source, needed * 0.999), source)
    self.assertEqual(source.made, 0)


if __name__ == '__main__':
  absltest.main()
