import pickle
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import isbi2012, open_dataset
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'
SAMPLE = SHARED / 'isbi2012_membrane'


class Isbi2012Test(parameterized.TestCase):
  """The whole set as PNG, and the challenge's TIFF of many pages, written from them."""

  def setUp(self):
    super().setUp()
    if not SAMPLE.is_dir():
      self.skipTest(f'{SAMPLE} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('isbi2012').data

  def open(self, root, split='all'):
    self.config.dir = str(root)
    return isbi2012.open_split(self.config, split, seed=0)

  def read(self, kind, number):
    return np.asarray(Image.open(SAMPLE / 'train' / kind / f'{number}.png'))

  def write_volumes(self, images, labels):
    for name, sections in (('train-volume.tif', images), ('train-labels.tif', labels)):
      first, *others = map(Image.fromarray, sections)
      first.save(self.root / name, save_all=True, append_images=others)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_classes(self):
    self.assertEqual(isbi2012.INFO.class_names, ('membrane', 'cell'))
    self.assertEqual(isbi2012.INFO.palette.tolist(), [[0, 0, 0], [255, 255, 255]])

  def test_all_sections_hold_as_many_membrane_pixels_as_the_files(self):
    source = self.open(SAMPLE)
    self.assertLen(source, 30)
    for i in range(30):
      label = self.read('label', i)
      counts = [(label == 0).sum(), (label == 255).sum()]
      self.assertEqual(np.bincount(source[i]['label'].ravel()).tolist(), counts)
      self.assertEqual(sum(counts), 512 * 512)
    image = np.repeat(self.read('image', 7)[..., None], 3, -1)
    np.testing.assert_array_equal(source[7]['image'], image)

  def test_val_is_the_last_six_sections(self):
    self.assertEqual(self.open(SAMPLE, 'train').names, [f'train/image/{n}.png' for n in range(24)])
    self.assertEqual(
      self.open(SAMPLE, 'val').names, [f'train/image/{n}.png' for n in range(24, 30)]
    )
    self.assert_user_error(lambda: self.open(SAMPLE, 'test'), "'test'", 'train, val, all')

  def test_pages_are_the_same_sections(self):
    crop = np.s_[100:164, 200:280]
    images = [self.read('image', n)[crop] for n in range(30)]
    labels = [self.read('label', n)[crop] for n in range(30)]
    self.write_volumes(images, labels)
    source = pickle.loads(pickle.dumps(self.open(self.root, 'val')))
    self.assertEqual(source.names[0], 'train-volume.tif/24')
    self.assertEqual((len(source), source.size(3)), (6, (64, 80)))
    for i in range(6):
      record = source[i]
      np.testing.assert_array_equal(record['image'][..., 1], images[24 + i])
      np.testing.assert_array_equal(record['label'], labels[24 + i] // 255)
    self.assertEqual(
      source.raw_values(0), {'0': (labels[24] == 0).sum(), '255': (labels[24] == 255).sum()}
    )
    np.testing.assert_array_equal(open_dataset(self.config, 'val', 0)[5]['label'], record['label'])

  def test_what_is_wrong_is_told(self):
    section = np.zeros((4, 5), np.uint8)
    self.write_volumes([section] * 30, [section] * 12)
    self.assert_user_error(lambda: self.open(self.root), 'train-labels.tif: 12 pages; expected 30')
    self.write_volumes([section] * 30, [section] * 29 + [section + 7])
    source = self.open(self.root, 'val')
    self.assert_user_error(lambda: source[5], 'train-labels.tif, page 29', 'value 7 (20 pixels)')
    whole = (self.root / 'train-labels.tif').read_bytes()
    (self.root / 'train-labels.tif').write_bytes(whole[: len(whole) // 2])
    self.assert_user_error(lambda: self.open(self.root, 'train'), 'train-labels.tif')
    (self.root / 'train-labels.tif').unlink()
    self.assert_user_error(lambda: self.open(self.root), self.root, 'train-labels.tif or')

  def test_half_a_download_is_told(self):
    for kind in ('image', 'label'):
      (self.root / 'train' / kind).mkdir(parents=True)
      for n in range(30 if kind == 'image' else 17):
        (self.root / f'train/{kind}/{n}.png').symlink_to(SAMPLE / f'train/{kind}/{n}.png')
    self.assert_user_error(lambda: self.open(self.root, 'train'), 'train/label', '13 of the 30')


if __name__ == '__main__':
  absltest.main()
