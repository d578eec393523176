import pickle
import subprocess
import sys
import tempfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from seg_jax.data.datasets import base
from seg_jax.data.files import LabelMap
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
    return base.FileSource(INFO, records, LabelMap({0: 0, 1: 1}), self.root)

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
      'from seg_jax.data.datasets.base import FileSource\n'
      'for name in "ab":\n'
      '  files = [{"image": Path(f"/elsewhere/{name}.png"), "label": Path("m.png")}]\n'
      '  print(FileSource(camvid.INFO, files, camvid.LABELS, Path("/elsewhere")))'
    )
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    from seg_jax.data.datasets import camvid

    records = [{'image': self.root / 'a.png', 'label': self.root / 'm.png'}]
    here = repr(base.FileSource(camvid.INFO, records, camvid.LABELS, self.root))
    there, other = out.stdout.split('\n')[:2]
    self.assertEqual(here, there)
    self.assertNotEqual(here, other)


class CachedSourceTest(absltest.TestCase):
  def test_a_record_is_made_once_and_cannot_be_changed(self):
    source = Counting()
    cache = base.CachedSource(source)
    for _ in range(3):
      self.assertEqual(cache[2]['label'].tolist(), [[2] * 5] * 4)
    self.assertEqual(source.made, 1)
    with self.assertRaises(ValueError):
      cache[2]['image'][0] = 9
    cache[2]['image'] = None  # the caller's dict, not the cache's
    self.assertIsNotNone(cache[2]['image'])

  def test_it_stands_for_its_source(self):
    cache = base.CachedSource(Counting())
    self.assertEqual((len(cache), cache.names, cache.info), (6, Counting.names, INFO))
    self.assertEqual((cache.size(0), repr(cache)), ((4, 5), 'Counting()'))

  def test_a_pickle_leaves_the_records_behind(self):
    cache = base.CachedSource(Counting())
    empty = len(pickle.dumps(cache))
    for i in range(6):
      cache[i]
    self.assertLess(len(pickle.dumps(cache)), empty + 8)
    self.assertEqual(pickle.loads(pickle.dumps(cache))[3]['label'][0, 0], 3)

  def test_threads_get_the_right_records(self):
    cache = base.CachedSource(Counting())
    order = np.random.default_rng(0).integers(0, 6, 500)
    with ThreadPool(8) as pool:
      values = pool.map(lambda i: cache[i]['label'][0, 0], order)
    self.assertEqual(values, order.tolist())

  def test_a_source_is_cached_only_if_all_of_it_fits(self):
    needed = 5 * (4 * 5 * 4) / 2**30  # a sixth record's header cannot be read
    source = Counting()
    self.assertIsInstance(base.cached(source, needed), base.CachedSource)
    self.assertIs(base.cached(source, needed * 0.999), source)
    self.assertEqual(source.made, 0)


class VocColormapTest(absltest.TestCase):
  def test_first_colours_are_those_published(self):
    self.assertEqual(
      base.voc_colormap(9).tolist(),
      [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
        [64, 0, 0],
      ],
    )

  def test_all_are_different_and_those_of_pascal_vocs_own_files(self):
    colours = base.voc_colormap(256)
    self.assertLen(np.unique(colours, axis=0), 256)
    mask = SHARED / 'pascal_voc/VOCdevkit/VOC2012/SegmentationClass/2007_000032.png'
    if not mask.exists():
      self.skipTest(f'{mask} is not there')
    palette = Image.open(mask).getpalette()
    self.assertEqual(colours.ravel().tolist(), palette)


if __name__ == '__main__':
  absltest.main()
