"""Small datasets, built by TFDS itself without TensorFlow, read by us and by Pillow."""

import io
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import open_dataset, tfds
from seg_jax.errors import UserError

F = tensorflow_datasets.features
COUNT = 5
VALUES = np.array([0, 7, 24], np.uint8)  # of the masks; in Cityscapes unlabelled, road, person


def drawn(i, file_format):
  """A picture and a mask of record `i`, of a size of its own: uint8 [H, W, 3] and [H, W]."""
  rng = np.random.default_rng(i)
  size = (10 + i, 14 - i)
  mask = VALUES[rng.integers(0, 3, size)]
  picture = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
  buffer = io.BytesIO()
  picture.save(buffer, file_format)
  return buffer.getvalue(), mask


class PaletteMasks(tensorflow_datasets.core.GeneratorBasedBuilder):
  """JPEGs, and palette PNGs without any names of classes."""

  VERSION = tensorflow_datasets.core.Version('1.2.0')

  def _info(self):
    features = {
      'image': F.Image(),
      'file_name': F.Text(),
      'label': F.ClassLabel(names=['a', 'b']),
      'segmentation_mask': F.Image(shape=(None, None, 1)),
    }
    return tensorflow_datasets.core.DatasetInfo(
      builder=self, features=F.FeaturesDict(features), disable_shuffling=True
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(), 'test': self._generate_examples()}

  def _generate_examples(self):
    for i in range(COUNT):
      jpeg, mask = drawn(i, 'JPEG')
      palette = Image.fromarray(mask, 'P')
      palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
      buffer = io.BytesIO()
      palette.save(buffer, 'PNG')
      yield (
        i,
        {
          'image': jpeg,
          'file_name': f'{i}.jpg',
          'label': i % 2,
          'segmentation_mask': buffer.getvalue(),
        },
      )


class NamedMasks(tensorflow_datasets.core.GeneratorBasedBuilder):
  """PNGs, and masks of three named classes and 255."""

  VERSION = tensorflow_datasets.core.Version('1.0.0')

  def _info(self):
    mask = F.LabeledImage(labels=['sky', 'road', 'car'], shape=(None, None, 1))
    return tensorflow_datasets.core.DatasetInfo(
      builder=self,
      features=F.FeaturesDict({'image_left': F.Image(), 'image_right': F.Image(), 'label': mask}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(COUNT):
      png, mask = drawn(i, 'PNG')
      mask = Image.fromarray(np.searchsorted(VALUES, mask).astype(np.uint8))
      mask.putpixel((0, 0), 255)
      buffer = io.BytesIO()
      mask.save(buffer, 'PNG')
      other = drawn(i + 5, 'PNG')[0]
      yield i, {'image_left': png, 'image_right': other, 'label': buffer.getvalue()}


class TfdsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def build(self, builder_class):
    builder_class(data_dir=self.root, file_format='array_record').download_and_prepare()

  def config(self, variant, **changes):
    config = get_config('tfds').data
    config.update({'dir': str(self.root), 'variant': variant, 'cache_gib': 0.0, **changes})
    return config

  def open(self, variant, split='train', **changes):
    return open_dataset(self.config(variant, **changes), split, seed=0)

  def assert_user_error(self, *says, **opened):
    with self.assertRaises(UserError) as caught:
      self.open(**opened)
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_pictures_and_palette_indices_are_what_pillow_reads(self):
    self.build(PaletteMasks)
    (self.root / 'classes.txt').write_text('road, 7\nperson, 24\nignore, 0')
    for variant in ('palette_masks', 'palette_masks:1.2.0', 'palette_masks:1.*.*'):
      source = self.open(variant, 'test')
      self.assertLen(source, COUNT)
      self.assertEqual(source.info.class_names, ('road', 'person'))
    for i in range(COUNT):
      jpeg, mask = drawn(i, 'JPEG')
      np.testing.assert_array_equal(source[i]['image'], np.asarray(Image.open(io.BytesIO(jpeg))))
      np.testing.assert_array_equal(
        source[i]['label'], np.select([mask == 7, mask == 24], [0, 1], 255)
      )
      self.assertEqual(source.size(i), mask.shape)
      values, counts = np.unique(mask, return_counts=True)
      expected = dict(zip(map(str, values), counts, strict=True))
      self.assertEqual(source.raw_values(i), expected)

  def test_without_names_of_classes_the_first_masks_are_told(self):
    self.build(PaletteMasks)
    counts = np.sum([np.bincount(drawn(i, 'PNG')[1].ravel(), minlength=25) for i in range(5)], 0)
    self.assert_user_error(
      self.root / 'classes.txt',
      'the first 5 masks hold',
      *(f'value {value} ({counts[value]} pixels)' for value in VALUES),
      variant='palette_masks',
    )

  def test_named_masks_need_nothing_more(self):
    self.build(NamedMasks)
    source = self.open('named_masks')
    self.assertEqual(source.info.class_names, ('sky', 'road', 'car'))
    self.assertLen(np.unique(source.info.palette, axis=0), 3)
    for i in range(COUNT):
      png, mask = drawn(i, 'PNG')
      expected = np.searchsorted(VALUES, mask)
      expected[0, 0] = 255
      np.testing.assert_array_equal(source[i]['image'], np.asarray(Image.open(io.BytesIO(png))))
      np.testing.assert_array_equal(source[i]['label'], expected)

  def test_parts_of_splits_and_copies_in_other_processes(self):
    self.build(NamedMasks)
    whole, part = self.open('named_masks'), self.open('named_masks', 'train[40%:]')
    self.assertLen(part, 3)
    self.assertNotEqual(repr(part), repr(whole))
    copy = pickle.loads(pickle.dumps(part))
    self.assertEqual(repr(copy), repr(self.open('named_masks', 'train[40%:]')))
    for i in range(3):
      np.testing.assert_array_equal(copy[i]['image'], whole[2 + i]['image'])
    self.assertLen(self.open('named_masks', 'train[:2]+train[3:]'), 4)
    with self.assertRaises(IndexError):
      part[3]
    self.assertLen(list(part.records), 3)

  def test_known_datasets_have_our_tables(self):
    self.build(PaletteMasks)
    folder = self.root / 'cityscapes' / 'semantic_segmentation' / '1.2.0'
    (self.root / 'palette_masks' / '1.2.0').rename(self.root / 'made')
    folder.parent.mkdir(parents=True)
    (self.root / 'made').rename(folder)
    for path in list(folder.glob('palette_masks-*')):
      path.rename(folder / path.name.replace('palette_masks', 'cityscapes'))
    info = json.loads((folder / 'dataset_info.json').read_text()) | {'name': 'cityscapes'}
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    source = self.open('cityscapes', 'test')
    self.assertEqual(source.info.num_classes, 19)
    mask = drawn(0, 'PNG')[1]
    np.testing.assert_array_equal(
      source[0]['label'], np.select([mask == 7, mask == 24], [0, 11], 255)
    )

  def test_what_is_wrong_is_told(self):
    self.build(NamedMasks)
    build = "tfds.builder('oxford_iiit_pet', data_dir='"
    self.assert_user_error(
      'oxford_iiit_pet', build, 'named_masks:1.0.0', variant='oxford_iiit_pet:4.0.0'
    )
    self.assert_user_error("'named_masks:2.0.0'", variant='named_masks:2.0.0')
    self.assert_user_error('dataset_info.json', 'data.variant', 'named_masks', variant='')
    self.assert_user_error("'val'", 'one of train', variant='named_masks', split='val')
    self.assert_user_error('empty', variant='named_masks', split='train[:0]')
    self.assert_user_error("'depth'", variant='named_masks', extras=('depth',))
    folder = self.root / 'named_masks' / '1.0.0'
    shard = next(folder.glob('*.array_record-*'))
    info = (folder / 'dataset_info.json').read_text()
    (folder / 'dataset_info.json').write_text(info.replace('"array_record"', '"tfrecord"'))
    build = "tfds.builder('named_masks', data_dir='"
    self.assert_user_error('tfrecord', build, variant='named_masks')
    build = "tfds.builder(NAME, data_dir=DIR, file_format='array_record')"
    self.assert_user_error(f'{folder} cannot', build, variant='', dir=str(folder))
    (folder / 'dataset_info.json').write_text(info)
    source = self.open('named_masks')
    shard.write_bytes(shard.read_bytes()[:100])
    with self.assertRaisesRegex(UserError, 'train/000000 in .*cannot be read'):
      source[0]
    shard.unlink()
    self.assert_user_error(shard, 'missing', variant='named_masks')

  @parameterized.parameters(
    ({'image': F.Image(), 'image_left': F.Image(), 'label': F.Image()}, 'image', 'label'),
    ({'photo': F.Image(), 'mask': F.Image(), 'label': F.ClassLabel()}, 'photo', 'mask'),
    (
      {
        'label': F.Image(),
        'photo': F.Image(),
        'heat': F.Image(shape=(None, None, 1)),
        'annotations': F.Image(shape=(None, None, 1)),
      },
      'photo',
      'annotations',
    ),
  )
  def test_features_are_found(self, features, picture, mask):
    found = tfds.picture_and_mask(F.FeaturesDict(features), self.root)
    self.assertEqual(found, (picture, mask))

  @parameterized.parameters(
    ({'one': F.Image(), 'two': F.Image(), 'mask': F.Image()}, r'a picture.*one \(Image\), two'),
    ({'image': F.Image(), 'label': F.ClassLabel()}, r'a mask.*label \(ClassLabel\)'),
    ({'image': F.Image(), 'boxes': F.BBoxFeature()}, r'a mask.*boxes \(BBoxFeature\)'),
  )  # fmt: skip
  def test_features_that_are_not_clear_are_listed(self, features, message):
    with self.assertRaisesRegex(UserError, message):
      tfds.picture_and_mask(F.FeaturesDict(features), self.root)


if __name__ == '__main__':
  absltest.main()
