"""What people do to the folders of official datasets: each is told in one line that helps.

The trees are small ones in the documented layouts, written here.
"""

import contextlib
import io
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax import IGNORE
from seg_jax.data.datasets import DATASETS, open_dataset, recognise
from seg_jax.data.datasets.base import is_there
from seg_jax.data.label_map import LabelMap, to_classes
from seg_jax.errors import UserError
from seg_jax.inspection import inspect

LAYOUTS = [
  (name, variant, info.layout)
  for name, module in DATASETS.items()
  for variant, info in getattr(module, 'INFOS', {}).items()
  if info.layout
]
RNG = np.random.default_rng(0)
SIZE = (40, 48)


def picture(path: Path, size=SIZE) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def mask(path: Path, values, size=SIZE) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(RNG.choice(np.uint8(values), size)).save(path)


def cityscapes(root: Path) -> Path:
  for split, city, number in itertools.product(('train', 'val'), ('aachen',), range(3)):
    stem = f'{split}/{city}/{city}_00000{number}_000019'
    picture(root / f'leftImg8bit/{stem}_leftImg8bit.png')
    mask(root / f'gtFine/{stem}_gtFine_labelIds.png', (0, 7, 11, 26))
    picture(root / f'gtFine/{stem}_gtFine_color.png')
  return root


def voc2012(root: Path) -> Path:
  for split in ('train', 'val'):
    stems = [f'2007_00000{i}' for i in (range(3) if split == 'train' else range(3, 6))]
    for stem in stems:
      picture(root / f'JPEGImages/{stem}.jpg')
      mask(root / f'SegmentationClass/{stem}.png', (0, 1, 15, 255))
    listing = root / f'ImageSets/Segmentation/{split}.txt'
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text('\n'.join(stems))
  return root


def camvid(root: Path) -> Path:
  for split, i in itertools.product(('train', 'val'), range(3)):
    picture(root / f'{split}/000{i}.png')
    mask(root / f'{split}annot/000{i}.png', range(12))
  return root


TREES = {'camvid': camvid, 'cityscapes': cityscapes, 'voc2012': voc2012}


class HostileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def config(self, name, folder):
    config = get_config(name)
    config.data.dir, config.data.cache_gib = str(folder), 0.0
    return config

  def read(self, name, folder, split='train'):
    source = open_dataset(self.config(name, folder).data, split, seed=0)
    return [source[i] for i in range(len(source))]

  def assert_told(self, name, folder, *says, split='train'):
    """One line for the user, with each of `says` in it."""
    with self.assertRaises(UserError) as caught:
      self.read(name, folder, split)
    self.assertNotIn('\n', str(caught.exception))
    for part in says:
      self.assertIn(str(part), str(caught.exception))


class RecogniseTest(HostileTest):
  """Each layout is written as it is declared, nothing but the parts that tell datasets apart."""

  def write(self, layout):
    folder = Path(tempfile.mkdtemp(dir=self.root))
    for part in layout:
      path = folder / part.split('|')[0].replace('**', 'x').replace('*', 'x').replace('?', 'x')
      path.parent.mkdir(parents=True, exist_ok=True)
      if path.suffix:
        path.touch()
      else:
        path.mkdir(exist_ok=True)
    return folder

  def test_each_layout_is_recognised_as_its_own_dataset_and_no_other(self):
    self.assertNotEmpty(LAYOUTS)
    for name, variant, layout in LAYOUTS:
      folder = self.write(layout)
      fits = {other for other, _, parts in LAYOUTS if all(is_there(folder, part) for part in parts)}
      self.assertEqual(fits, {name}, (name, variant))
      self.assertEqual(recognise(folder), name)

  def test_a_folder_given_as_another_dataset_is_told_by_its_name(self):
    for name, _, layout in LAYOUTS:
      folder = self.write(layout)
      for other in {other for other, *_ in LAYOUTS} - {name}:
        with self.subTest(f'{name} as {other}'), self.assertRaises(UserError) as caught:
          open_dataset(self.config(other, folder).data, 'train', seed=0)
        self.assertIn(f"looks like the folder of '{name}'", str(caught.exception))

  def test_a_folder_of_another_variant_is_told(self):
    layout = next(parts for name, variant, parts in LAYOUTS if (name, variant) == ('kitti', 'road'))
    self.assert_told('kitti', self.write(layout), "of 'kitti', of another data.variant")

  @parameterized.parameters(*TREES)
  def test_whole_trees_are_recognised(self, name):
    folder = TREES[name](self.root)
    self.assertEqual(recognise(folder), name)
    self.assertLen(self.read(name, folder), 3)


class WrongPlaceTest(HostileTest):
  def test_one_level_too_high(self):
    folder = cityscapes(self.root / 'data')
    self.assert_told('cityscapes', self.root, f'did you mean {folder}?', 'expected leftImg8bit')
    folder = voc2012(self.root / 'older/VOCdevkit/VOC2012')
    self.assertLen(self.read('voc2012', folder.parents[1]), 3)  # known to lie there
    self.assert_told('voc2012', self.root, f'did you mean {folder.parents[1]}?')

  @parameterized.parameters('leftImg8bit', 'leftImg8bit/train', 'gtFine/val/aachen')
  def test_some_levels_too_deep(self, inner):
    folder = cityscapes(self.root / 'data')
    self.assert_told('cityscapes', folder / inner, f'did you mean {folder}?')

  @parameterized.parameters('leftImg8bit_trainvaltest.zip', 'images.tar', 'all.tgz')
  def test_still_packed(self, archive):
    (self.root / archive).touch()
    self.assert_told('cityscapes', self.root, f'{archive} lies there packed, unpack it')

  def test_nothing_to_be_found(self):
    self.assert_told('cityscapes', self.root, f"{self.root} is not the folder of 'cityscapes'; exp")


class HalfDownloadTest(HostileTest):
  def test_pictures_of_the_listing_are_missing(self):
    folder = voc2012(self.root)
    for i in (0, 2):
      (folder / f'JPEGImages/2007_00000{i}.jpg').unlink()
    self.assert_told('voc2012', folder, '2 of the 3 files of', 'train.txt', '2007_000000.jpg')

  def test_the_listing_is_missing(self):
    folder = voc2012(self.root)
    (folder / 'ImageSets/Segmentation/train.txt').unlink()
    self.assert_told('voc2012', folder, 'ImageSets/Segmentation/train.txt')

  def test_masks_are_missing(self):
    folder = voc2012(self.root)
    (folder / 'SegmentationClass/2007_000001.png').unlink()
    self.assert_told('voc2012', folder, '2007_000001.jpg: has no mask; expected')

  def test_a_split_is_missing(self):
    folder = cityscapes(self.root)
    (folder / 'leftImg8bit/val').rename(self.root / 'elsewhere')
    self.assert_told('cityscapes', folder, 'leftImg8bit/val: no such directory', split='val')
    self.assertLen(self.read('cityscapes', folder), 3)

  @parameterized.parameters(
    ('JPEGImages/2007_000001.jpg', 0),
    ('JPEGImages/2007_000001.jpg', -300),
    ('SegmentationClass/2007_000001.png', 0),
    ('SegmentationClass/2007_000001.png', -100),
  )
  def test_files_that_were_cut_short(self, name, end):
    folder = voc2012(self.root)
    (folder / name).write_bytes((folder / name).read_bytes()[:end])
    self.assert_told('voc2012', folder, f'{name}: cannot be read')


class OtherMasksTest(HostileTest):
  def test_colours_in_the_place_of_label_ids(self):
    folder = cityscapes(self.root)
    labels = folder / 'gtFine/train/aachen'
    for path in labels.glob('*_color.png'):
      path.rename(path.with_name(path.name.replace('color', 'labelIds')))
    self.assert_told('cityscapes', folder, '_labelIds.png: a mask in RGB colours', 'looked at')

  def test_colours_alone(self):
    folder = cityscapes(self.root)
    for path in (folder / 'gtFine/train/aachen').glob('*_labelIds.png'):
      path.unlink()
    self.assert_told('cityscapes', folder, '_gtFine_color.png, fits', 'NAME_gtFine_labelIds.png')

  def test_masks_that_count_from_1(self):
    folder = voc2012(self.root)
    mask(folder / 'SegmentationClass/2007_000001.png', (1, 2, 21))
    self.assert_told('voc2012', folder, 'value 21', 'are the classes counted from 1?')

  @parameterized.parameters(
    ({0: 0, 1: 1, 2: 2, 255: IGNORE}, (0, 4)),  # one more than one above
    ({0: 0, 1: 1, 2: 2, 255: IGNORE}, (3, 9)),
    ({0: IGNORE, 1: 0, 2: 1}, (1, 3)),  # counts from 1 already
  )
  def test_other_unknown_values_give_no_such_hint(self, classes, values):
    with self.assertRaises(UserError) as caught:
      to_classes(np.uint8([values]), LabelMap(classes), 'a.png')
    self.assertIn('not known', str(caught.exception))
    self.assertNotIn('counted from 1', str(caught.exception))


class InspectTest(HostileTest):
  def test_all_that_is_wrong_is_in_the_report_and_the_rest_is_examined(self):
    folder = voc2012(self.root / 'voc')
    (folder / 'JPEGImages/2007_000000.jpg').write_bytes(b'')
    path = folder / 'SegmentationClass/2007_000002.png'
    path.write_bytes(path.read_bytes()[:-100])
    (folder / 'SegmentationClass/2007_000004.png').unlink()
    mask(folder / 'SegmentationClass/2010_000009.png', (0, 1))
    out = io.StringIO()
    with (
      contextlib.redirect_stdout(out),
      self.assertRaisesRegex(UserError, "split 'val' .*2007_000004.jpg: has no mask.*2 of 3 rec"),
    ):
      inspect(self.config('voc2012', folder), self.root)
    report = json.loads((self.root / 'inspect/train.json').read_text())
    unreadable = report['suspicious']['unreadable']
    self.assertLen(unreadable, 2)
    self.assertIn('2007_000000.jpg: cannot be read', unreadable[0])
    self.assertIn('2007_000002.png: cannot be read', unreadable[1])
    self.assertEqual(report['classes']['person']['images'], 1)
    self.assertRegex(report['suspicious']['part'][0], '^3 of the official 1,464 images; a part')
    self.assertIn('2010_000009.png', report['suspicious']['masks_without_a_picture'][0])
    self.assertIn('officially 1,464', out.getvalue())
    self.assertEqual(out.getvalue().count('host.robots.ox.ac.uk'), 1)
    self.assertTrue((self.root / 'inspect/train.png').exists())


if __name__ == '__main__':
  absltest.main()
