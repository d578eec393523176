import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import ExifTags, Image

from configs.common import get_config
from seg_jax import IGNORE
from seg_jax.data.label_map import LabelMap
from seg_jax.inspection import inspect, suspicions

FROM_1 = LabelMap({0: IGNORE, 1: 0, 2: 1, 3: 2})  # 0 is ignored, as in ADE20K
ALL = '0 = ignored and the classes from 1 to 3'


def counts(*values):
  return {str(value): 10 for value in values}


class OffByOneTest(parameterized.TestCase):
  @parameterized.parameters(
    ((0, 1, 2), 'hold 0 to 2, never 3: 1 has been subtracted already (reduce_zero_label)'),
    ((0, 1, 2, 255), 'hold 0 to 2 and 255, never 3: 1 has been subtracted already'),
    ((0, 2, 255), 'hold 0 to 2 and 255, never 3: 1 has been subtracted already'),
    ((1, 2, 3, 255), 'hold 255, never 0, which has become 255'),
  )
  def test_masks_that_were_changed_are_told_with_what_is_expected(self, values, says):
    remark = suspicions.off_by_one(counts(*values), FROM_1)
    self.assertIn(says, remark)
    self.assertIn(ALL, remark)

  @parameterized.parameters(
    ((0, 1, 2, 3),), ((1, 2, 3),), ((0, 2),), ((0, 1),), ((),), ((0, 3, '7,8,9'),)
  )
  def test_masks_as_they_should_be_are_not_suspected(self, values):
    self.assertEqual(suspicions.off_by_one(counts(*values), FROM_1), '')

  @parameterized.parameters(
    LabelMap({0: 0, 1: 1, 2: 2, 255: IGNORE}),
    LabelMap({0: IGNORE, 1: IGNORE, 2: 0, 3: 1}),
    LabelMap({(0, 0, 0): IGNORE, (1, 1, 1): 0}),
  )
  def test_other_datasets_are_left_alone(self, label_map):
    self.assertEqual(suspicions.off_by_one(counts(0, 1, 2, 255), label_map), '')


class LoneMasksTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def touch(self, *names):
    for name in names:
      (self.root / name).parent.mkdir(parents=True, exist_ok=True)
      (self.root / name).touch()

  def lone(self, *pairs):
    records = [{'image': self.root / image, 'label': self.root / mask} for image, mask in pairs]
    masks = suspicions.lone_masks(records)
    return [mask.relative_to(self.root).as_posix() for mask in masks]

  def test_masks_without_a_picture_are_named(self):
    self.touch('i/a.jpg', 'i/other_split.png', 'm/a.png', 'm/other_split.png', 'm/._b.png')
    self.assertEqual(self.lone(('i/a.jpg', 'm/a.png')), [])
    self.touch('m/lost.png')
    self.assertEqual(self.lone(('i/a.jpg', 'm/a.png')), ['m/lost.png'])

  def test_names_may_end_differently(self):
    pair = 'i/x/a_1_leftImg8bit.png', 'm/x/a_1_gtFine_labelIds.png'
    self.touch(*pair, 'm/x/a_1_gtFine_color.png', 'm/x/a_2_gtFine_labelIds.png')
    self.assertEqual(self.lone(pair), ['m/x/a_2_gtFine_labelIds.png'])

  def test_labels_that_are_no_files_are_passed_over(self):
    self.assertEmpty(suspicions.lone_masks([{'image': Path('a.jpg'), 'label': (Path('b'), 3)}]))


class FilesTest(absltest.TestCase):
  """`inspect` of a folder of real files."""

  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in ('images', 'masks', 'splits'):
      (self.root / name).mkdir()
    (self.root / 'classes.txt').write_text('road, 7\ncar, 9\nignore, 0\n')
    self.rng = np.random.default_rng(0)
    for stem in 'abc':
      self.save(stem, self.rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))

  def save(self, stem, image, size=(40, 50), **options):
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(self.root / f'images/{stem}.tif', **options)
    mask = self.rng.choice(np.uint8([0, 7, 9]), size)
    Image.fromarray(mask).save(self.root / f'masks/{stem}.png')

  def inspect(self):
    stems = sorted(path.stem for path in (self.root / 'images').iterdir())
    (self.root / 'splits/train.txt').write_text('\n'.join(stems))
    (self.root / 'splits/val.txt').write_text('a\nb\nc')
    config = get_config('folder')
    config.data.dir = str(self.root)
    with contextlib.redirect_stdout(io.StringIO()) as out:
      inspect(config, self.root / 'run')
    self.printed = out.getvalue()
    return json.loads((self.root / 'run/inspect/train.json').read_text())

  def test_raw_values_are_printed_with_their_meaning(self):
    report = self.inspect()
    masks = np.stack([np.asarray(Image.open(path)) for path in (self.root / 'masks').iterdir()])
    for value, meaning in ((7, 'road'), (9, 'car'), (0, 'ignored')):
      self.assertEqual(report['raw_values'][str(value)], (masks == value).sum())
      self.assertEqual(report['raw_meanings'][str(value)], meaning)
      self.assertIn(f'{value} -> {meaning} ({(masks == value).mean():.2%})', self.printed)

  def test_pictures_that_are_converted_or_turned_are_named(self):
    noise = self.rng.integers(0, 256, (40, 50, 4), dtype=np.uint8)
    self.save('grey', noise[..., 0])
    self.save('press', Image.fromarray(noise, 'CMYK'))
    (self.root / 'images/press.tif').rename(self.root / 'images/press.tiff')
    turned = Image.fromarray(noise[..., 1:])
    exif = turned.getexif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(self.root / 'images/side.jpg', exif=exif)
    Image.new('L', (40, 50), 7).save(self.root / 'masks/side.png')
    suspicious = self.inspect()['suspicious']
    self.assertEqual(suspicious['grey'], ['images/grey.tif: converted from grey to RGB'])
    self.assertEqual(suspicious['cmyk'], ['images/press.tiff: converted from CMYK to RGB'])
    self.assertEqual(
      suspicious['exif'], ['images/side.jpg: stored on its side (EXIF orientation 6), and turned']
    )

  def test_masks_without_a_picture(self):
    Image.new('L', (5, 5)).save(self.root / 'masks/lost.png')
    suspicious = self.inspect()['suspicious']
    self.assertIn('masks/lost.png', suspicious['masks_without_a_picture'][0])


if __name__ == '__main__':
  absltest.main()
