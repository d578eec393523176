import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import DATASETS, open_dataset
from seg_jax.data.datasets.base import CachedSource, FileSource
from seg_jax.errors import UserError


class OpenDatasetTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def config(self, name):
    config = get_config(name).data
    config.dir = str(self.root)
    return config

  def camvid(self):
    for split in ('train', 'val', 'test'):
      for folder in (split, split + 'annot'):
        (self.root / folder).mkdir()
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(self.root / folder / 'x.png')
    return self.config('camvid')

  def assert_user_error(self, config, split, *says):
    with self.assertRaises(UserError) as caught:
      open_dataset(config, split, seed=0)
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_an_unknown_dataset_is_told_with_the_nearest(self):
    self.assert_user_error(self.config('camvit'), 'train', 'data.name', "did you mean 'camvid'")

  @parameterized.parameters('camvid', 'folder')
  def test_a_directory_that_is_missing_or_not_set(self, name):
    config = self.config(name)
    config.dir = str(self.root / 'nowhere')
    self.assert_user_error(config, 'train', 'data.dir', config.dir)
    config.dir = ''
    self.assert_user_error(config, 'train', 'data.dir', 'not set', name)

  def test_an_unknown_split_is_told_with_those_that_exist(self):
    for config in (self.config('shapes'), self.camvid()):
      self.assert_user_error(config, 'valid', "'valid'", 'train, val, test')

  def test_an_empty_split(self):
    config = self.config('folder')
    (self.root / 'classes.txt').write_text('background\nthing')
    for folder in ('images', 'masks'):
      (self.root / folder).mkdir()
      Image.fromarray(np.zeros((4, 6), np.uint8)).save(self.root / folder / 'x.png')
    self.assertLen(open_dataset(config, 'train', seed=0), 1)
    self.assert_user_error(config, 'val', "'val'", self.root, 'empty')

  def test_files_are_kept_in_memory_if_they_fit(self):
    config = self.camvid()
    needed = 4 * 6 * 4 / 2**30
    config.cache_gib = needed
    self.assertIsInstance(open_dataset(config, 'val', seed=0), CachedSource)
    config.num_workers = 2  # each of which would hold all of them
    self.assertIsInstance(open_dataset(config, 'val', seed=0), FileSource)
    config.cache_gib = 2 * needed
    self.assertIsInstance(open_dataset(config, 'val', seed=0), CachedSource)
    config.cache_gib = 0.0
    self.assertIsInstance(open_dataset(config, 'val', seed=0), FileSource)

  def test_each_dataset_has_a_colour_for_each_class(self):
    self.assertIn(get_config().data.name, DATASETS)
    for config in (self.config('shapes'), self.camvid()):
      info = open_dataset(config, 'train', seed=0).info
      self.assertEqual((info.name, info.palette.dtype), (config.name, np.uint8))
      self.assertLen(np.unique(info.palette, axis=0), info.num_classes)


if __name__ == '__main__':
  absltest.main()
