"""BDD100K, on 24 real pictures, the toolkit's test files and small trees in the owners' layouts.

The 24 lie in a layout of their finder's own, with the class as index of a palette; they are linked
into the owners'. Bitmasks come from the toolkit's tests, with pictures made for them.
"""

import tempfile
import tomllib
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import bdd100k, open_dataset, recognise
from seg_jax.data.label_map import read_label
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data' / 'bdd100k'
BITMASKS = 'toolkit_testcases/label/bitmasks/quasi-video/insseg_bitmask.png'


def histogram(array):
  return np.bincount(np.asarray(array).ravel(), minlength=256)


class Bdd100kTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not SHARED.is_dir():
      self.skipTest(f'{SHARED} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('bdd100k').data
    self.config.dir = str(self.root)

  def open(self, split='train'):
    return open_dataset(self.config, split, seed=0)

  def link(self, source, target):
    (self.root / target).parent.mkdir(parents=True, exist_ok=True)
    (self.root / target).symlink_to(SHARED / source)

  def link_samples(self, images, labels, ending):
    for split in ('train', 'val'):
      self.link(f'samples24/images/{split}', f'{images}/{split}')
      for mask in (SHARED / 'samples24/colormaps' / split).iterdir():
        self.link(mask, f'{labels}/{split}/{mask.stem}{ending}.png')

  def link_bitmask(self, path):
    """One picture of zeros with the semantic mask of a road and this bitmask."""
    height, width = np.asarray(Image.open(SHARED / path)).shape[:2]
    for folder in ('images/10k', 'labels/sem_seg/masks'):
      (self.root / folder / 'train').mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    picture.save(self.root / 'images/10k/train/a.jpg')
    mask = Image.fromarray(np.zeros((height, width), np.uint8))
    mask.save(self.root / 'labels/sem_seg/masks/train/a.png')
    self.link(path, 'labels/ins_seg/bitmasks/train/a.png')
    self.config.extras = ('instances',)

  def test_the_table(self):
    info = bdd100k.INFO
    self.assertEqual(info.num_classes, 19)
    self.assertEqual((info.class_names[0], info.class_names[18]), ('road', 'bicycle'))
    for i, colour in {0: (128, 64, 128), 3: (102, 102, 156), 13: (0, 0, 142)}.items():
      self.assertSequenceEqual(info.palette[i].tolist(), colour)
    self.assertEqual(bdd100k.LABELS.classes, {**{i: i for i in range(19)}, 255: 255})
    names = [info.class_names[i] for i in info.things]
    self.assertEqual(
      names, ['person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle']
    )

  def test_the_toolkits_table_but_for_wall_and_fence(self):
    text = (SHARED / 'toolkit_configs/sem_seg.toml').read_text()
    rows = tomllib.loads(text)['scalabel']['categories']
    info = bdd100k.INFO
    self.assertSequenceEqual(info.class_names, [row['name'] for row in rows])
    colours = [row['color'] for row in rows]
    colours[3], colours[4] = colours[4], colours[3]
    self.assertEqual(info.palette.tolist(), colours)

  @parameterized.parameters(
    ('', 'images/10k', 'labels/sem_seg/masks', ''),
    ('bdd100k/', 'images/10k', 'labels/sem_seg/masks', ''),
    ('', 'seg/images', 'seg/labels', '_train_id'),
    ('bdd100k/', 'seg/images', 'seg/labels', '_train_id'),
  )
  def test_the_samples_are_what_pillow_reads_in_either_release(
    self, parent, images, labels, ending
  ):
    self.link_samples(parent + images, parent + labels, ending)
    for split, count in (('train', 16), ('val', 8)):
      source = self.open(split)
      self.assertLen(source, count)
      for i in range(0, count, 8):
        stem = Path(source.names[i]).stem
        record = source[i]
        mask = Image.open(SHARED / f'samples24/colormaps/{split}/{stem}.png')
        np.testing.assert_array_equal(histogram(record['label']), histogram(mask))
        image = np.asarray(Image.open(SHARED / f'samples24/images/{split}/{stem}.jpg'))
        np.testing.assert_array_equal(record['image'], image)
    if not parent:
      self.assertEqual(recognise(self.root), 'bdd100k')

  def test_every_sample_holds_known_values_only(self):
    self.link_samples('images/10k', 'labels/sem_seg/masks', '')
    for split in ('train', 'val'):
      source = self.open(split)
      total = sum(histogram(source[i]['label']) for i in range(len(source)))
      masks = (SHARED / 'samples24/colormaps' / split).iterdir()
      np.testing.assert_array_equal(total, sum(histogram(Image.open(mask)) for mask in masks))

  def test_the_example_of_the_release_of_2018(self):
    folder = 'drn_2018_release_example'
    self.link(f'{folder}/bdd_image.jpg', 'seg/images/train/bdd.jpg')
    self.link(f'{folder}/bdd_label_id.png', 'seg/labels/train/bdd_train_id.png')
    source = self.open()
    label = source[0]['label']
    np.testing.assert_array_equal(label, Image.open(SHARED / folder / 'bdd_label_id.png'))
    colours = np.asarray(Image.open(SHARED / folder / 'bdd_label_color.png'))
    np.testing.assert_array_equal(colours, source.info.palette[label])

  def test_the_layout_that_other_tools_test_with(self):
    self.config.dir = str(SHARED / 'mmseg_pseudo_8x8')
    for split in ('train', 'val'):
      source = self.open(split)
      self.assertLen(source, 3)
      for i, name in enumerate(source.names):
        mask = SHARED / f'mmseg_pseudo_8x8/labels/sem_seg/masks/{split}/{Path(name).stem}.png'
        np.testing.assert_array_equal(source[i]['label'], Image.open(mask))

  @parameterized.parameters('semseg_mask.png', 'to_rle/test-mask.png', 'to_rle/sem_seg/masks/0.png')
  def test_the_toolkits_masks_are_what_pillow_reads(self, path):
    path = SHARED / 'toolkit_testcases/label' / path
    label = read_label(path, bdd100k.LABELS)
    np.testing.assert_array_equal(histogram(label), histogram(Image.open(path)))

  @parameterized.parameters(
    BITMASKS, 'toolkit_testcases/label/to_rle/ins_seg/masks/0.png',
    'toolkit_testcases/eval/ins_seg/gt/a.png',
    'toolkit_testcases/label/to_rle/seg_track/masks/0/0-1.png',
  )  # fmt: skip
  def test_objects_are_those_of_the_bitmask(self, path):
    self.link_bitmask(path)
    record = self.open()[0]
    rgba = np.asarray(Image.open(SHARED / path)).astype(int)
    category, number = rgba[..., 0], rgba[..., 2] * 256 + rgba[..., 3]
    expected = []
    for n in np.unique(number[category > 0]):
      inside = (number == n) & (category > 0)
      (kind,), (attributes,) = np.unique(category[inside]), np.unique(rgba[..., 1][inside])
      crowd = attributes in (1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15)
      expected.append((10 + kind, crowd, inside.sum()))
    found = [
      (c, crowd, (record['instances'] == k).sum())
      for k, (c, crowd) in enumerate(zip(record['classes'], record['is_crowd'], strict=True), 1)
    ]
    self.assertNotEmpty(expected)
    self.assertCountEqual(found, expected)

  def test_attributes_and_numbers_by_hand(self):
    self.link_bitmask(BITMASKS)
    path = self.root / 'labels/ins_seg/bitmasks/train/a.png'
    rgba = np.zeros((720, 1280, 4), np.uint8)
    rgba[0, 0] = 1, 0b1100, 0, 7  # a person, truncated and occluded
    rgba[0, 1] = 3, 0b0010, 1, 7  # cars, a crowd, number 263
    rgba[0, 2] = 3, 0b0001, 0, 8  # a car to be ignored
    rgba[0, 3] = 8, 0, 0, 0  # a bicycle of the number 0
    path.unlink()
    Image.fromarray(rgba).save(path)
    record = self.open()[0]
    np.testing.assert_array_equal(np.unique(record['instances']), [0, 1, 2, 3, 4])
    k = record['instances'][0, :4] - 1
    self.assertSequenceEqual(record['classes'][k].tolist(), [11, 13, 13, 18])
    self.assertSequenceEqual(record['is_crowd'][k].tolist(), [False, True, True, False])

  def test_a_panoptic_bitmask_is_not_taken_for_one_of_instances(self):
    self.link_bitmask('toolkit_testcases/label/panseg_bdd100k/panseg_mask.png')
    with self.assertRaisesRegex(UserError, r'a\.png: category \d+; expected 0 to 8'):
      self.open()[0]

  def test_what_is_wrong_with_the_folder_is_told(self):
    with self.assertRaisesRegex(UserError, "not the folder of 'bdd100k'.*expected images/10k or"):
      self.open()
    self.link_samples('seg/images', 'seg/labels', '_train_id')
    with self.assertRaisesRegex(UserError, "no split 'test'"):
      self.open('test')
    self.config.extras = ('instances',)
    with self.assertRaisesRegex(UserError, "'bdd100k' has no 'instances'"):
      self.open()
    self.config.extras = ()
    mask = next((self.root / 'seg/labels/val').iterdir())
    mask.unlink()
    with self.assertRaisesRegex(UserError, f'has no mask; expected .*{mask.name}'):
      self.open('val')


if __name__ == '__main__':
  absltest.main()
