"""KITTI, on five real pictures for `semantic`; for `road` on small pictures made here."""

import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import kitti, open_dataset, recognise
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data' / 'kitti_semantics'
ALIGNED = SHARED / 'derived_aligned_1224x370'
# Cityscapes' labels.py: id -> train id.
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10}
TRAIN_IDS |= {24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


class KittiTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('kitti').data
    self.config.dir = str(self.root)

  def open(self, split):
    return open_dataset(self.config, split, seed=0)

  def save(self, array, name):
    path = self.root / 'training' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


class SemanticTest(KittiTest):
  def setUp(self):
    super().setUp()
    if not SHARED.is_dir():
      self.skipTest(f'{SHARED} is not there')

  def test_the_table(self):
    info = kitti.INFOS['semantic']
    self.assertEqual(info.num_classes, 19)
    self.assertEqual((info.class_names[0], info.class_names[18]), ('road', 'bicycle'))
    for i, colour in {0: (128, 64, 128), 8: (107, 142, 35), 13: (0, 0, 142)}.items():
      self.assertSequenceEqual(info.palette[i].tolist(), colour)

  def test_the_samples_are_what_pillow_reads(self):
    self.config.dir = str(ALIGNED)
    source = self.open('train')
    self.assertLen(source, 5)
    for i, name in enumerate(source.names):
      record = source[i]
      image = np.asarray(Image.open(ALIGNED / name))
      np.testing.assert_array_equal(record['image'], image)
      mask = np.asarray(Image.open(ALIGNED / 'training/semantic' / Path(name).name))
      counts = np.zeros(256, int)
      for value, count in zip(*np.unique(mask, return_counts=True), strict=True):
        counts[TRAIN_IDS.get(value, 255)] += count
      np.testing.assert_array_equal(np.bincount(record['label'].ravel(), minlength=256), counts)

  def test_the_colours_are_those_of_the_coloured_masks(self):
    self.config.dir = str(ALIGNED)
    source = self.open('train')
    for i, name in enumerate(source.names):
      label = source[i]['label']
      colours = np.asarray(Image.open(ALIGNED / 'training/semantic_rgb' / Path(name).name))
      known = label != 255
      np.testing.assert_array_equal(source.info.palette[label[known]], colours[known, :3])

  def test_objects_are_id_times_256_plus_n_and_n_0_is_a_crowd(self):
    self.config.dir, self.config.extras = str(ALIGNED), ('instances',)
    source = self.open('train')
    crowds = 0
    for i, name in enumerate(source.names):
      record = source[i]
      ids = np.asarray(Image.open(ALIGNED / 'training/instance' / Path(name).name)).astype(int)
      expected = [
        (TRAIN_IDS[value // 256], value % 256 == 0, (ids == value).sum())
        for value in np.unique(ids)
        if 24 <= value // 256 <= 33 and value // 256 in TRAIN_IDS
      ]
      found = [
        (c, crowd, (record['instances'] == k).sum())
        for k, (c, crowd) in enumerate(zip(record['classes'], record['is_crowd'], strict=True), 1)
      ]
      self.assertNotEmpty(expected)
      self.assertCountEqual(found, expected)
      crowds += record['is_crowd'].sum()
    self.assertGreater(crowds, 0)

  def test_masks_of_another_size_are_told(self):
    """The finder's own pictures are cut, their masks are not."""
    self.config.dir = str(SHARED)
    source = self.open('train')  # in data_semantics/
    self.assertSequenceEqual(
      source.names, ['training/image_2/000000_10.png', 'training/image_2/000001_10.png']
    )
    with self.assertRaisesRegex(
      UserError, r'000000_10.png has 370 x 1224 .*mask .*000000_10.png 375 x 1242'
    ):
      source[0]

  def test_splits_are_by_number(self):
    pixels = np.zeros((2, 3), np.uint8)
    for number in (0, 159, 160, 199):
      self.save(np.stack([pixels] * 3, -1), f'image_2/{number:06}_10.png')
      self.save(pixels, f'semantic/{number:06}_10.png')
    self.save(np.stack([pixels] * 3, -1), 'image_2/000000_11.png')  # the next frame has no mask
    numbers = {'train': [0, 159], 'val': [160, 199], 'all': [0, 159, 160, 199]}
    for split, expected in numbers.items():
      names = [f'training/image_2/{number:06}_10.png' for number in expected]
      self.assertSequenceEqual(self.open(split).names, names)
    self.assertEqual(kitti.INFOS['semantic'].num_images, {'train': 160, 'val': 40, 'all': 200})
    self.assertEqual(recognise(self.root), 'kitti')

  def test_what_is_wrong_with_the_folder_is_told(self):
    self.config.dir = str(ALIGNED)
    with self.assertRaisesRegex(UserError, 'is empty'):
      self.open('val')
    with self.assertRaisesRegex(UserError, "no split 'test'; expected one of train, val, all"):
      self.open('test')
    self.config.variant = 'road'
    with self.assertRaisesRegex(UserError, 'another data.variant; expected training/gt_image_2'):
      self.open('train')
    self.config.dir, self.config.variant = str(self.root), ''
    with self.assertRaisesRegex(UserError, "not the folder of 'kitti'"):
      self.open('train')
    self.save(np.zeros((2, 3), np.uint8), 'semantic/000000_10.png')
    for name in ('image_2/000000_10.png', 'image_2/000001_10.png'):
      self.save(np.zeros((2, 3, 3), np.uint8), name)
    with self.assertRaisesRegex(UserError, '000001_10.png: has no mask'):
      self.open('train')
    self.save(np.zeros((2, 3, 3), np.uint8), 'image_2/first_10.png')
    with self.assertRaisesRegex(UserError, "first_10.png: expected KITTI's names"):
      self.open('train')


class RoadTest(KittiTest):
  def setUp(self):
    super().setUp()
    self.config.variant = 'road'

  def save_all(self, numbers):
    red, magenta, black, blue = (255, 0, 0), (255, 0, 255), (0, 0, 0), (0, 0, 255)
    mask = np.array([[red, magenta, black], [blue, red, red]], np.uint8)
    for kind, number in numbers:
      self.save(np.zeros((2, 3, 3), np.uint8), f'image_2/{kind}_{number:06}.png')
      self.save(mask, f'gt_image_2/{kind}_road_{number:06}.png')
    self.save(mask, 'gt_image_2/um_lane_000000.png')

  def test_the_road_is_magenta_and_pixels_without_red_are_ignored(self):
    self.save_all([('um', 0)])
    source = self.open('train')
    np.testing.assert_array_equal(source[0]['label'], [[0, 1, 255], [255, 0, 0]])
    self.assertEqual(source.info.class_names, ('not road', 'road'))
    self.assertSequenceEqual(source.info.palette.tolist(), [[255, 0, 0], [255, 0, 255]])

  def test_a_colour_of_another_kind_is_told(self):
    self.save_all([('um', 0)])
    self.save(np.full((2, 3, 3), 128, np.uint8), 'gt_image_2/um_road_000000.png')
    with self.assertRaisesRegex(UserError, r'um_road_000000.png: colour 128,128,128 \(6 pixels\)'):
      self.open('train')[0]

  def test_splits_are_by_number_in_each_kind(self):
    """All 289 of them, each a small picture."""
    counts = {'um': 95, 'umm': 96, 'uu': 98}
    self.save_all([(kind, i) for kind, count in counts.items() for i in range(count)])
    self.config.dir = str(self.root)
    sources = {split: self.open(split) for split in ('train', 'val', 'all')}
    for split, source in sources.items():
      self.assertLen(source, kitti.INFOS['road'].num_images[split])
    self.assertEqual(
      sorted([*sources['train'].names, *sources['val'].names]), sorted(sources['all'].names)
    )
    self.assertIn('training/image_2/umm_000075.png', sources['train'].names)
    self.assertIn('training/image_2/umm_000076.png', sources['val'].names)

  def test_half_a_download_is_told(self):
    self.save_all([('um', 0), ('uu', 1), ('uu', 2)])
    (self.root / 'training/gt_image_2/uu_road_000001.png').unlink()
    with self.assertRaisesRegex(
      UserError, 'gt_image_2: 1 of the 3 files of .* are missing, such as uu_road_000001.png'
    ):
      self.open('train')
    self.config.extras = ('instances',)
    self.save_all([('uu', 1)])
    with self.assertRaisesRegex(UserError, "'kitti' has no 'instances'"):
      self.open('train')


if __name__ == '__main__':
  absltest.main()
