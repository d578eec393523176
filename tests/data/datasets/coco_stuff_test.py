"""21 real pictures with their maps, which each test links into a tree as the owners have it."""

import os
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import coco_stuff, open_dataset, recognise
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data' / 'coco_stuff'
COUNTS = {'train': 13, 'val': 8}


def listed_names():
  """{id: name} of the owners' labels.txt."""
  lines = (SHARED / 'labels.txt').read_text().splitlines()
  return {int(number): name for number, name in (line.split(': ') for line in lines)}


class CocoStuffTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not SHARED.is_dir():
      self.skipTest(f'{SHARED} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('coco_stuff').data
    self.config.dir = str(self.root)

  def open(self, split='val'):
    return open_dataset(self.config, split, seed=0)

  def tree(self, pictures='', maps='stuffthingmaps'):
    for split in COUNTS:
      for kind, folder in (('img', pictures), ('label', maps)):
        for path in (SHARED / f'{split}_{kind}').iterdir():
          link = self.root / folder / f'{split}2017' / path.name
          link.parent.mkdir(parents=True, exist_ok=True)
          os.symlink(path, link)

  def test_classes_are_those_of_the_owners(self):
    names, info = listed_names(), coco_stuff.INFO
    rows = (SHARED / 'labels.md').read_text().splitlines()
    removed = {int(row.split('|')[0]) for row in rows if row.endswith('Removed from COCO.')}
    self.assertLen(removed, 11)
    used = [number for number in range(1, 183) if number not in removed]
    self.assertEqual(info.class_names, tuple(names[number] for number in used))
    self.assertEqual(
      coco_stuff.LABELS.classes, {255: 255} | {number - 1: i for i, number in enumerate(used)}
    )
    self.assertLen(info.class_names, 171)
    self.assertEqual((info.class_names[0], info.class_names[80]), ('person', 'banner'))
    self.assertEqual(info.class_names[170], 'wood')
    self.assertEqual(info.things, tuple(range(80)))
    self.assertEqual(info.num_images, {'train': 118287, 'val': 5000})
    # PASCAL VOC's colours of 1, 2 and 171 = 0b10101011: R has its bits 0, 3, 6; G 1, 4, 7; B 2, 5.
    colours = [[128, 0, 0], [0, 128, 0], [0b11000000, 0b10100000, 0b01000000]]
    self.assertEqual(info.palette[[0, 1, 170]].tolist(), colours)
    self.assertLen({tuple(colour) for colour in info.palette.tolist()}, 171)

  @parameterized.product(
    pictures=['', 'images'], maps=['stuffthingmaps', 'stuffthingmaps_trainval2017', 'annotations']
  )
  def test_every_usual_layout_holds_the_same(self, pictures, maps):
    self.tree(pictures, maps)
    self.assertEqual(recognise(self.root), 'coco_stuff')
    for split, count in COUNTS.items():
      source = self.open(split)
      self.assertLen(source, count)
      self.assertStartsWith(source.names[0], f'{pictures}/{split}2017/'.lstrip('/'))
      self.assertEqual(source[1]['label'].shape, source.size(1))

  @parameterized.parameters(*COUNTS)
  def test_pixels_of_each_class_are_those_counted_by_name(self, split):
    self.tree()
    names, source = listed_names(), self.open(split)
    for i, name in enumerate(source.names):
      record, stem = source[i], Path(name).stem
      image = Image.open(SHARED / f'{split}_img' / f'{stem}.jpg').convert('RGB')
      np.testing.assert_array_equal(record['image'], image)
      stored = np.array(Image.open(SHARED / f'{split}_label' / f'{stem}.png'))
      values, counts = np.unique(stored, return_counts=True)
      expected = {
        'ignored' if value == 255 else names[value + 1]: count
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
      }
      classes, counts = np.unique(record['label'], return_counts=True)
      found = {
        'ignored' if k == 255 else coco_stuff.INFO.class_names[k]: count
        for k, count in zip(classes.tolist(), counts.tolist(), strict=True)
      }
      self.assertEqual(found, expected)

  @parameterized.parameters(11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90, 182, 254)
  def test_ids_that_coco_never_annotated_are_told(self, value):
    self.tree()
    path = self.root / 'stuffthingmaps' / 'val2017' / '000000000785.png'
    mask = np.array(Image.open(path))
    mask[:2, :3] = value
    path.unlink()
    Image.fromarray(mask).save(path)
    source = self.open()
    with self.assertRaisesRegex(UserError, rf'0785.png: value {value} \(6 pixels\) not known'):
      source[source.names.index('val2017/000000000785.jpg')]

  def test_converted_maps_beside_the_owners_are_left_alone(self):
    """What mmsegmentation's converter writes; its 0 to 170 would be other classes."""
    self.tree('images', 'annotations')
    for path in list((self.root / 'annotations' / 'val2017').iterdir()):
      converted = Image.fromarray(np.zeros((2, 2), np.uint8))
      converted.save(path.with_name(f'{path.stem}_labelTrainIds.png'))
    source = self.open()
    self.assertLen(source, 8)
    self.assertEqual(source[0]['label'].shape, source.size(0))

  def test_half_a_download_is_noticed(self):
    self.tree()
    (self.root / 'val2017' / '000000000785.jpg').unlink()
    with self.assertRaisesRegex(UserError, '1 of the 8 files of .* missing, such as 0.*785.jpg'):
      self.open()
    (self.root / 'stuffthingmaps' / 'train2017' / '000000184101.png').unlink()
    with self.assertRaisesRegex(UserError, '184101.jpg: has no mask; expected .*184101.png'):
      self.open('train')

  def test_wrong_folders_are_told(self):
    with self.assertRaisesRegex(
      UserError, "not the folder of 'coco_stuff'.*stuffthingmaps/val2017"
    ):
      self.open()
    self.tree()
    with self.assertRaisesRegex(UserError, "no split 'test'; expected one of train, val"):
      self.open('test')
    for folder in ('train2017', 'stuffthingmaps/train2017'):
      (self.root / folder).rename(self.root / 'moved')
      with self.assertRaisesRegex(UserError, 'has no .*train'):
        self.open('train')
      (self.root / 'moved').rename(self.root / folder)
    self.config.extras = ('instances',)
    with self.assertRaisesRegex(UserError, "'coco_stuff' has no 'instances'"):
      self.open()


if __name__ == '__main__':
  absltest.main()
