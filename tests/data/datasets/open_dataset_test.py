import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl import logging
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import DATASETS, camvid, open_dataset, recognise, shapes
from seg_jax.data.datasets.sources import CachedSource, FileSource
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

  def test_an_unknown_variant_is_told_with_the_nearest_or_that_there_is_none(self):
    config = self.config('shapes')
    config.variant = 'v1.2'
    self.assert_user_error(config, 'train', 'data.variant', "'shapes' has no 'v1.2'", 'only one')
    with mock.patch.object(shapes, 'INFOS', {'v1.1': shapes.INFO, 'v2.0': shapes.INFO}):
      self.assert_user_error(config, 'train', "'shapes' has no 'v1.2'", "did you mean 'v1.1'")
      config.variant = 'huge'
      self.assert_user_error(config, 'train', "'shapes' has no 'huge'", 'one of v1.1, v2.0')
      for variant in ('', 'v2.0'):
        config.variant = variant
        self.assertLen(open_dataset(config, 'train', seed=0), 2000)

  @parameterized.parameters('camvid', 'folder')
  def test_extras_that_a_dataset_lacks(self, name):
    config = self.camvid()
    for part in ('images', 'masks'):
      (self.root / part).symlink_to(self.root / 'train')
    (self.root / 'classes.txt').write_text('a\nb')
    (self.root / 'splits').mkdir()
    (self.root / 'splits/train.txt').write_text('x')
    config.name = name
    self.assertLen(open_dataset(config, 'train', seed=0), 1)
    config.extras = ('depth',)
    self.assert_user_error(config, 'train', 'data.extras', f"'{name}' has no 'depth'", 'nothing')

  def test_the_folder_of_another_dataset_is_recognised(self):
    for part in ('leftImg8bit/train', 'gtFine/train'):
      (self.root / part).mkdir(parents=True)
    self.assert_user_error(
      self.config('voc2012'),
      'train',
      self.root,
      "is not the folder of 'voc2012'",
      "it looks like the folder of 'cityscapes'",
      'expected JPEGImages',
    )
    self.assertEqual(recognise(self.root), 'cityscapes')
    self.assertIsNone(recognise(self.root / 'gtFine'))

  def test_another_number_of_pictures_than_the_official_one_is_said(self):
    config = self.camvid()
    with self.assertLogs(logging.get_absl_logger(), 'WARNING') as told:
      open_dataset(config, 'val', seed=0)
    self.assertIn('camvid, val: 1 pictures, officially 101', told.output[0])
    with (
      mock.patch.dict(camvid.INFO.num_images, {'val': 1}),
      self.assertNoLogs(logging.get_absl_logger(), 'WARNING'),
    ):
      open_dataset(config, 'val', seed=0)

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
