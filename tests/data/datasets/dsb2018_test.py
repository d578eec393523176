import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import dsb2018, open_dataset
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'
SAMPLE = SHARED / 'dsb2018'


class RealTest(absltest.TestCase):
  """A hundred pictures of the repaired edition."""

  def setUp(self):
    super().setUp()
    if not SAMPLE.is_dir():
      self.skipTest(f'{SAMPLE} is not there')
    self.config = get_config('dsb2018').data
    self.config.dir = str(SAMPLE)

  def open(self, split):
    return dsb2018.open_split(self.config, split, seed=0)

  def test_classes(self):
    self.assertEqual(dsb2018.INFO.class_names, ('background', 'nucleus'))
    self.assertEqual(dsb2018.INFO.things, (1,))

  def test_records_have_the_objects_of_their_masks(self):
    """One in ten of them, for there are 4422 masks."""
    self.config.extras = ('instances',)
    source = self.open('all')
    self.assertLen(source, len([p for p in (SAMPLE / 'stage1_train').iterdir() if p.is_dir()]))
    for i in range(0, len(source), 10):
      masks = sorted((SAMPLE / source.names[i]).parents[1].glob('masks/*.png'))
      masks = [np.asarray(Image.open(path)) > 0 for path in masks]
      record = source[i]
      layers = record['instances'].reshape(*record['label'].shape, -1)
      covered = np.sum(masks, 0)
      self.assertEqual(np.bincount(record['label'].ravel(), minlength=2)[1], (covered > 0).sum())
      areas = np.bincount(layers.ravel(), minlength=len(masks) + 1)[1:]
      self.assertEqual(areas.tolist(), [mask.sum() for mask in masks])
      self.assertEqual(record['classes'].tolist(), [1] * len(masks))
      self.assertFalse(record['is_crowd'].any())
      self.assertEqual(layers.shape[2] > 1, bool((covered > 1).any()))

  def test_pictures_lose_their_alpha(self):
    source = self.open('val')
    image = np.asarray(Image.open(SAMPLE / source.names[0]))
    self.assertEqual(image.shape[2], 4)
    np.testing.assert_array_equal(source[0]['image'], image[..., :3])
    self.assertEqual(source.size(0), image.shape[:2])

  def test_train_and_val_share_no_picture(self):
    train, val = self.open('train').names, self.open('val').names
    self.assertEqual(sorted(train + val), self.open('all').names)
    self.assertBetween(len(val), 10, 30)
    self.assertLen(open_dataset(self.config, 'val', seed=0), len(val))


class WrittenTest(absltest.TestCase):
  """A small tree in the owners' layout."""

  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('dsb2018').data
    self.config.dir = str(self.root)

  def write(self, name, *masks):
    folder = self.root / 'stage1_train' / name
    for kind in ('images', 'masks'):
      (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 4), 9, np.uint8)).save(folder / f'images/{name}.png')
    for k, mask in enumerate(masks):
      Image.fromarray(np.asarray(mask, np.uint8)).save(folder / f'masks/{k}.png')

  def open(self, *extras):
    self.config.extras = extras
    return dsb2018.open_split(self.config, 'all', seed=0)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_nuclei_that_overlap_stay_whole(self):
    masks = np.zeros((3, 4, 5), np.uint8)
    masks[0, :, :3], masks[1, :, 2:], masks[2, 3, 4] = 255, 255, 255
    self.write('a', *masks)
    record = self.open('instances')[0]
    np.testing.assert_array_equal(record['label'], np.ones((4, 5)))
    for k in range(3):
      np.testing.assert_array_equal((record['instances'] == k + 1).any(-1), masks[k] > 0)

  def test_what_is_wrong_is_told(self):
    self.assert_user_error(self.open, self.root, 'expected stage1_train/*/images')
    mask = np.zeros((4, 5))
    self.write('a', mask, mask[:3])
    folder = self.root / 'stage1_train/a'
    self.assert_user_error(lambda: self.open()[0], folder / 'masks/1.png', '(3, 5)', '(4, 5)')
    self.write('b', mask[:2])
    self.assert_user_error(lambda: self.open()[1], 'b/masks', '2 x 5', '4 x 5')
    self.write('c', mask + 3)
    self.assert_user_error(lambda: self.open()[2], 'c/masks', 'value 3 (20 pixels)')
    self.write('d')
    self.assert_user_error(lambda: self.open()[3], 'd/masks', 'no masks')
    (self.root / 'stage1_train/d/masks').rmdir()
    self.assert_user_error(self.open, 'masks', 'expected a whole download')
    self.config.extras = ('depth',)
    self.assert_user_error(lambda: dsb2018.open_split(self.config, 'test', 0), "'test'")


if __name__ == '__main__':
  absltest.main()
