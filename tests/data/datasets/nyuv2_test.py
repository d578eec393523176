import io
import pickle
import sys
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from scipy.io import loadmat

from configs.common import get_config
from seg_jax.data.datasets import nyuv2, open_dataset
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'
SAMPLE = SHARED / 'nyuv2'
MAT = 'nyu_depth_v2_labeled.mat'


class Nyuv2Test(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not SAMPLE.is_dir():
      self.skipTest(f'{SAMPLE} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('nyuv2').data
    self.config.dir = str(self.root)

  def open(self, split='test', variant='', extras=()):
    self.config.variant, self.config.extras = variant, extras
    return nyuv2.open_split(self.config, split, seed=0)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    for part in says:
      self.assertIn(str(part), str(caught.exception))


class FactsTest(Nyuv2Test):
  """What the module says, against the .mat files with which the field makes the 40 and the 13."""

  def setUp(self):
    super().setUp()
    meta = SAMPLE / 'labels_only'
    self.to_40 = loadmat(meta / 'classMapping40.mat', squeeze_me=True)
    groups = loadmat(meta / 'class13Mapping.mat', struct_as_record=False, squeeze_me=True)
    self.to_13 = groups['classMapping13']
    self.splits = loadmat(meta / 'splits.mat', squeeze_me=True)

  def test_names(self):
    self.assertEqual(nyuv2.INFOS['40'].class_names, tuple(self.to_40['className'].tolist()))
    self.assertEqual(nyuv2.INFOS['13'].class_names, tuple(self.to_13.classNames.tolist()))
    self.assertEqual(next(iter(nyuv2.INFOS)), '40')

  def test_the_894_names_are_grouped_as_published(self):
    of_40 = self.to_40['mapClass'].astype(int)
    of_13 = self.to_13.labels13.astype(int)[of_40 - 1]
    for variant, groups in (('40', of_40), ('13', of_13)):
      expected = {0: 255} | {i + 1: int(group) - 1 for i, group in enumerate(groups)}
      self.assertEqual(nyuv2.MAT_LABELS[variant].classes, expected)

  def test_splits(self):
    for split, count in (('train', 795), ('test', 654)):
      numbers = [n for n in range(1, 1450) if nyuv2._split_of(n) == split]
      self.assertEqual(numbers, self.splits[f'{split}Ndxs'].tolist())
      self.assertLen(numbers, count)

  def test_colours_are_those_of_pascal_voc(self):
    self.assertEqual(
      nyuv2.INFOS['40'].palette[:3].tolist(), [[128, 0, 0], [0, 128, 0], [128] * 2 + [0]]
    )
    for info in nyuv2.INFOS.values():
      self.assertLen(np.unique(info.palette, axis=0), info.num_classes)


class PngTest(Nyuv2Test):
  """The PNG layout: the one real frame with depth, of which rows 45-470, columns 40-600 are known.

  Then some of the real masks of test with black pictures, and small masks of all 40 classes.
  """

  def write(self, **files):
    for folder, (name, pixels) in files.items():
      (self.root / folder).mkdir(exist_ok=True)
      Image.fromarray(pixels).save(self.root / folder / name)

  def test_the_real_frame(self):
    image = np.asarray(Image.open(SAMPLE / '1407_rgb_crop425x560.png'))
    depth = np.asarray(Image.open(SAMPLE / '1407_rawdepth_mm_crop425x560.png'))
    raw = np.asarray(Image.open(SAMPLE / '1407_class13_480x640.png'))[45:470, 40:600]
    name = '1407.png'
    self.write(images=(name, image), labels13=(name, raw), depth=(name, depth))
    source = self.open(variant='13', extras=('depth',))
    record = source[0]
    np.testing.assert_array_equal(record['image'], image)
    counts = np.bincount(raw.ravel(), minlength=256)
    np.testing.assert_array_equal(
      np.bincount(record['label'].ravel(), minlength=256), np.r_[counts[1:], counts[0]]
    )
    self.assertEqual(record['depth'].dtype, np.float32)
    np.testing.assert_allclose(record['depth'] * 1000, depth, atol=0.01)
    self.assertEqual(record['depth'].min(), 0)
    self.assertBetween(np.median(record['depth']), 1.5, 6)
    self.assertEmpty(self.open('train', '13'))

  def test_real_masks_of_test(self):
    black = np.zeros((480, 640, 3), np.uint8)
    masks = {}
    with tarfile.open(SAMPLE / 'labels_only/nyuv2_test_class13.tgz') as archive:
      members = sorted((m for m in archive if m.name.endswith('.png')), key=lambda m: m.name)
      self.assertLen(members, 654)
      numbers = [int(m.name[-8:-4]) for m in members]
      for member, number in list(zip(members, numbers, strict=True))[::60]:
        data = io.BytesIO(archive.extractfile(member).read())
        masks[f'{number:04d}.png'] = np.asarray(Image.open(data))
    self.assertEqual({nyuv2._split_of(n) for n in numbers}, {'test'})
    for name, mask in masks.items():
      self.write(images=(name, black), labels13=(name, mask))
    source = self.open(variant='13')
    self.assertEqual(source.names, [f'images/{name}' for name in masks])
    for i, mask in enumerate(masks.values()):
      np.testing.assert_array_equal(
        source[i]['label'], np.where(mask == 0, 255, mask.astype(int) - 1)
      )

  def test_forty_classes_count_from_1(self):
    mask = np.arange(42, dtype=np.uint8).reshape(6, 7) % 41
    self.write(images=('3.jpg', np.zeros((6, 7, 3), np.uint8)), labels40=('3.png', mask))
    source = self.open('train')
    self.assertEqual(source[0]['label'].ravel().tolist(), [255, *range(40), 255])
    self.write(labels40=('3.png', mask + 1))
    self.assert_user_error(lambda: source[0], self.root / 'labels40/3.png', 'value 41 (1 pixel)')

  def test_what_is_wrong_is_told(self):
    picture = np.zeros((4, 5, 3), np.uint8)
    self.write(images=('0003.png', picture), labels13=('0003.png', picture[..., 0]))
    self.assert_user_error(lambda: self.open(), 'of another data.variant', 'or labels40')
    self.assert_user_error(lambda: self.open('val', '13'), "'val'", 'train, test')
    self.assert_user_error(lambda: self.open('train', '13', ('depth',)), self.root / 'depth')
    self.assert_user_error(lambda: self.open('train', '13', ('instances',)), 'instances', 'depth')
    self.write(images=('0004.png', picture))
    self.assert_user_error(lambda: self.open('train', '13'), '0004.png', 'has no mask')
    self.write(images=('0.png', picture))  # as of those who count from 0
    self.assert_user_error(lambda: self.open('train', '13'), 'images/0.png', '1 to 1449')


class MatTest(Nyuv2Test):
  """An HDF5 file with the owners' names, axes and types, and 1449 pictures of 4 rows, 6 columns."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (1449, 4, 6, 3), np.uint8)
    self.labels = rng.integers(0, 895, (1449, 4, 6), np.uint16)
    self.depths = rng.uniform(0.7, 9.9, (1449, 4, 6)).astype(np.float32)
    self.write()

  def write(self, count=1449, leave_out=''):
    with h5py.File(self.root / MAT, 'w') as file:
      for name in ('images', 'labels', 'depths'):
        if name != leave_out:
          array = getattr(self, name)[:count]
          file[name] = array.transpose(0, *range(array.ndim - 1, 0, -1))

  @parameterized.parameters(('train', '40', 795, 2), ('test', '13', 654, 0))
  def test_records_have_the_axes_turned_and_the_classes_mapped(self, split, variant, count, first):
    source = pickle.loads(pickle.dumps(self.open(split, variant, ('depth',))))
    self.assertLen(source, count)
    self.assertEqual((source.size(0), source.names[0]), ((4, 6), f'{MAT}/{first + 1:04d}'))
    mapping = source.label_map.classes  # FactsTest says what it is
    for index, number in ((0, first), (count - 1, int(source.names[-1][-4:]) - 1)):
      record = source[index]
      np.testing.assert_array_equal(record['image'], self.images[number])
      np.testing.assert_array_equal(record['depth'], self.depths[number])
      expected = [mapping[value] for value in self.labels[number].ravel().tolist()]
      self.assertEqual(record['label'].ravel().tolist(), expected)
      self.assertTrue(all(array.flags.c_contiguous for array in record.values()))
    values, counts = np.unique(self.labels[first], return_counts=True)
    self.assertEqual(
      source.raw_values(0), dict(zip(map(str, values), counts.tolist(), strict=True))
    )
    with self.assertRaises(IndexError):
      source[count]

  def test_it_is_opened_by_its_name_and_depth_is_read_only_when_asked_for(self):
    self.config.variant = '13'
    source = open_dataset(self.config, 'train', seed=0)
    self.assertEqual(set(source[0]), {'image', 'label'})
    self.assertEqual(repr(source), repr(self.open('train', '13')))
    self.assertNotEqual(repr(source), repr(self.open('test', '13')))

  def test_what_is_wrong_is_told(self):
    self.write(count=700)
    self.assert_user_error(self.open, self.root / MAT, '700 pictures; expected 1449')
    self.write(leave_out='depths')
    self.assert_user_error(lambda: self.open(extras=('depth',))[0], self.root / MAT, 'depths')
    self.assert_user_error(lambda: self.open(extras=('instances',)), "'instances'", 'depth')
    self.labels[0, 0, 0] = 895
    self.write()
    self.assert_user_error(lambda: self.open()[0], f'{MAT}, picture 1', 'value 895')
    whole = (self.root / MAT).read_bytes()
    (self.root / MAT).write_bytes(whole[: len(whole) // 2])
    self.assert_user_error(self.open, self.root / MAT, 'cannot be read')
    with mock.patch.dict(sys.modules, {'h5py': None}):
      self.assert_user_error(self.open, self.root / MAT, "pip install 'seg_jax[nyuv2]'")


if __name__ == '__main__':
  absltest.main()
