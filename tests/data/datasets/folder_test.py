import tempfile
import unicodedata
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import base, folder
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('folder').data
    self.config.dir = str(self.root)

  def write(self, classes=None, masks=(), splits=None):
    """`masks` are stems, or (stem, array)."""
    for mask in masks:
      stem, array = mask if isinstance(mask, tuple) else (mask, np.zeros((4, 6), np.uint8))
      for kind, pixels in (('images', np.zeros((4, 6, 3), np.uint8)), ('masks', array)):
        path = self.root / kind / f'{stem}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels)).save(path)
    if classes is not None:
      (self.root / 'classes.txt').write_text(classes)
    for name, lines in (splits or {}).items():
      (self.root / 'splits').mkdir(exist_ok=True)
      (self.root / 'splits' / f'{name}.txt').write_text(lines)

  def open(self, split='train'):
    return folder.open_split(self.config, split, seed=0)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    for part in says:
      self.assertIn(str(part), str(caught.exception))


class ClassesTest(FolderTest):
  def read(self, text):
    self.write(text)
    return folder.read_classes(self.root / 'classes.txt')

  def test_names_alone_are_the_values_0_1_and_255_is_ignored(self):
    info, label_map = self.read('\ufeffbackground # where nothing is\r\n\r\n# more\r\nred car\r\n')
    self.assertEqual(info.class_names, ('background', 'red car'))
    self.assertEqual(label_map.classes, {0: 0, 1: 1, 255: 255})
    self.assertTrue(label_map.ignore_is_assumed)
    self.assertEqual(info.palette.tolist(), [[0, 0, 0], [128, 0, 0]])

  def test_names_alone_with_ignored_values(self):
    _, label_map = self.read('background\ncar\nignore, 255\nignore, 11')
    self.assertEqual(label_map.classes, {0: 0, 1: 1, 255: 255, 11: 255})
    self.assertFalse(label_map.ignore_is_assumed)

  def test_values_are_only_those_listed(self):
    info, label_map = self.read('ignore, 0\nroad, 7\nsky,300\nignore,255')
    self.assertEqual(info.class_names, ('road', 'sky'))
    self.assertEqual(label_map.classes, {0: 255, 7: 0, 300: 1, 255: 255})
    self.assertFalse(label_map.ignore_is_assumed)

  def test_colours_are_those_listed_and_the_palette(self):
    info, label_map = self.read('road, 128,64,128\nignore, 0, 0, 0\nsky, 1, 2, 3')
    self.assertEqual(label_map.classes, {(128, 64, 128): 0, (0, 0, 0): 255, (1, 2, 3): 1})
    self.assertEqual(info.palette.tolist(), [[128, 64, 128], [1, 2, 3]])
    self.assertEqual(info.palette.dtype, np.uint8)

  def test_labelmes_own_list_is_read(self):
    info, label_map = self.read('__ignore__\n_background_\ncar')
    self.assertEqual(info.class_names, ('_background_', 'car'))
    self.assertEqual(label_map.classes, {255: 255, 0: 0, 1: 1})

  @parameterized.parameters(
    ('a, 0\nb', 'line 2', "'NAME'", "expected 'NAME, VALUE'"),
    ('a\n\nb, 1', 'line 3', "'NAME, VALUE'", "expected 'NAME'"),
    ('a, 0, 0, 0\nb, 1', 'line 2', "expected 'NAME, R, G, B'"),
    ('a, 0, 0, 0\nb, 1, 1, 1\nignore, 5', 'line 3', "expected 'NAME, R, G, B'"),
    ('a\nb\nignore', 'line 3', "expected 'NAME, VALUE'"),
    ('a\na', 'line 2', "'a' for the second time"),
    ('a, 3\nb, 3', 'line 2', "'3' for the second time"),
    ('a, 3\nb, 4\nignore, 4', 'line 3', "'4' for the second time"),
    ('a\nb\nignore, 1', 'line 3', "'1' for the second time"),
    ('a, 1, 2, 3\nb, 1, 2, 3', 'line 2', "'(1, 2, 3)' for the second time"),
    ('a, 0\nb, 70000', 'line 2', 'b, 70000', '0 to 65535'),
    ('a, 0, 0, 256\nb, 1, 1, 1', 'line 1', '0 to 255'),
    ('a, 0\nb, -1', 'line 2'),
    ('a, 0\nb, one', 'line 2', 'b, one'),
    ('a, 0, 0\nb', 'line 1', 'a, 0, 0'),
    (', 0\nb, 1', 'line 1'),
    ('a, 0\nb,', 'line 2'),
    ('crack', '1 classes', 'background'),
    ('', '0 classes'),
    ('\n'.join(f'c{i}' for i in range(255)), '255 classes', '254'),
  )
  def test_what_is_wrong_is_told_with_its_line(self, text, *says):
    self.assert_user_error(lambda: self.read(text), self.root / 'classes.txt', *says)

  def test_without_the_file_it_is_said_what_to_write_and_what_the_masks_hold(self):
    mask = np.zeros((4, 6), np.uint8)
    mask[0, :5] = 255
    self.write(masks=[('a', mask), ('b', mask // 255 * 3)])
    self.assert_user_error(
      self.open,
      self.root / 'classes.txt',
      'NAME, VALUE',
      'NAME, R, G, B',
      'value 0 (38 pixels), value 3 (5 pixels), value 255 (5 pixels)',
    )

  def test_without_the_file_colours_are_told_as_colours(self):
    self.write(masks=[('a', np.full((4, 6, 3), (1, 2, 3), np.uint8))])
    self.assert_user_error(self.open, 'colour 1,2,3 (24 pixels)')


class RecordsTest(FolderTest):
  def test_masks_of_0_and_255_are_refused_until_255_is_told(self):
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 1:3] = 255
    self.write('background\ncell', [('a/x', mask)])
    self.assert_user_error(lambda: self.open()[0], self.root / 'masks/a/x.png', 'NAME, 255')
    self.write('background, 0\ncell, 255')
    np.testing.assert_array_equal(self.open()[0]['label'], mask // 255)
    self.write('background\ncell\nignore, 255')
    np.testing.assert_array_equal(self.open()[0]['label'], mask)

  def test_clothing_in_vocs_colours_is_read_as_the_index_of_the_colour(self):
    root = SHARED / 'clothing_ccp/voc_layout/VOCdevkit/VOC2012'
    if not root.is_dir():
      self.skipTest(f'{root} is not there')
    colours = base.voc_colormap(59)
    self.write(''.join(f'c{i}, {r}, {g}, {b}\n' for i, (r, g, b) in enumerate(colours)))
    for name, there in (('images', 'JPEGImages'), ('masks', 'SegmentationClass')):
      (self.root / name).symlink_to(root / there)
    source = self.open('val')
    for i in range(min(3, len(source))):
      label = source[i]['label']
      mask = root / 'SegmentationClass' / Path(source.names[i]).with_suffix('.png').name
      np.testing.assert_array_equal(colours[label], np.asarray(Image.open(mask).convert('RGB')))


class SuspicionTest(FolderTest):
  """What is told besides the plain error about a mask, and what helps then."""

  def open_with(self, classes, mask, image=None):
    self.write(classes, [('x', mask)], {'train': 'x'})
    if image is not None:
      Image.fromarray(image).save(self.root / 'images/x.png')
    return self.open()

  def fails(self, classes, mask, *says, image=None):
    source = self.open_with(classes, mask, image)
    self.assert_user_error(lambda: source[0], self.root / 'masks/x.png', *says)

  def photograph(self, *shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

  def test_pictures_and_masks_are_swapped(self):
    flat = np.zeros((40, 60), np.uint8)
    self.fails('a\nb', self.photograph(40, 60, 3), 'are pictures and masks swapped?', image=flat)
    self.fails('a\nb', self.photograph(40, 60), 'are pictures and masks swapped?', image=flat)

  def test_pictures_and_jpeg_masks_are_swapped_also_without_classes(self):
    self.write(None, [('x', np.zeros((40, 60), np.uint8))])
    (self.root / 'masks/x.png').rename(self.root / 'images/x.png')
    Image.fromarray(self.photograph(40, 60, 3)).save(self.root / 'masks/x.jpg')
    says = self.root / 'masks/x.jpg', 'are pictures and masks swapped?'
    self.assert_user_error(self.open, *says)
    self.write('a\nb', splits={'train': 'x'})
    self.assert_user_error(lambda: self.open()[0], *says)

  def test_a_palette_that_became_rgb(self):
    label = np.array([[0, 1, 2, 255], [0, 0, 1, 1]], np.uint8)
    picture = Image.fromarray(label)
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 2, 255]] = (128, 0, 0), (0, 128, 0), (224, 224, 192)  # as VOC's
    picture.putpalette(palette.tobytes())
    mask, image = np.asarray(picture.convert('RGB')), np.zeros((2, 4, 3), np.uint8)
    lines = ['sky, 0, 0, 0', 'road, 128, 0, 0', 'car, 0, 128, 0', 'ignore, 224, 224, 192']
    self.fails('sky\nroad\ncar', mask, 'VOC palette for 0, 1, 2, 255', *lines, image=image)
    source = self.open_with('\n'.join(lines), mask, image)
    np.testing.assert_array_equal(source[0]['label'], label)
    mask = np.where(mask == 128, np.uint8(127), mask)
    with self.assertRaises(UserError) as caught:
      self.open_with('sky\nroad\ncar', mask, image)[0]
    self.assertNotIn('VOC', str(caught.exception))

  @parameterized.parameters(
    ('a\nb', [1, 2, 1, 2], 'counted from 1?', ['a, 1', 'b, 2'], [0, 1, 0, 1]),
    ('a\nb', [0, 2, 1, 2], 'count from 1', ['a, 1', 'b, 2', 'ignore, 0'], [255, 1, 0, 1]),
    ('a\nb\nc', [255, 3, 1, 1], 'count from 1', ['a, 1', 'b, 2', 'c, 3'], None),
    ('a\nb', [0, 257, 0, 0], 'times 257', ['a, 0', 'b, 257', 'ignore, 65535'], [0, 1, 0, 0]),
    ('a\nb', [0, 256, 0, 0], 'times 256', ['a, 0', 'b, 256'], [0, 1, 0, 0]),
    ('a\nb', [255, 0, 1, 254], 'reduce_zero_label', ['ignore, 254', 'ignore, 255'], None),
    ('a\nb', [0, 1001, 0, 1002], 'instance ids', [], None),
  )
  def test_other_values_are_explained_with_the_lines_that_help(
    self, classes, values, remark, lines, label
  ):
    mask = np.array([values], np.uint16 if max(values) > 255 else np.uint8)
    self.fails(classes, mask, remark, *(f"'{line}'" for line in lines), image=mask)
    if label:
      np.testing.assert_array_equal(
        self.open_with('\n'.join(lines), mask, mask)[0]['label'], [label]
      )

  def test_many_values_are_taken_for_the_numbers_of_objects(self):
    mask = np.arange(24, dtype=np.uint16).reshape(4, 6)
    self.fails('a\nb', mask, '24 values for 2 classes', 'instance ids')

  def test_16_bits_are_read_if_they_hold_classes(self):
    mask = np.full((4, 6), 1, np.uint16)
    np.testing.assert_array_equal(self.open_with('a\nb', mask)[0]['label'], mask)

  def test_an_error_of_no_known_cause_has_no_hint(self):
    source = self.open_with('a, 0\nb, 9', np.full((4, 6), 5, np.uint8))
    with self.assertRaises(UserError) as caught:
      source[0]
    self.assertEndsWith(str(caught.exception), 'expected 0 or 9')


class NamesTest(FolderTest):
  def pair(self, image, mask):
    self.write('a\nb', ['x'])
    for kind, name in (('images', image), ('masks', mask)):
      (self.root / kind / 'x.png').rename(self.root / kind / name)

  @parameterized.parameters(
    ('Käse im Glas.png', 'Käse im Glas.png'),
    ('Ka\u0308se.png', 'K\u00e4se.png'),  # macOS takes umlauts apart
    ('K\u00e4se.PNG', 'Ka\u0308se.Png'),
    ('a.b #1.png', 'a.b #1.PNG'),
  )
  def test_names_are_paired_whatever_their_script_and_the_case_of_the_suffix(self, image, mask):
    self.pair(image, mask)
    stem = image[:-4]
    for written in (stem, unicodedata.normalize('NFC', stem), unicodedata.normalize('NFD', stem)):
      self.write(splits={'train': written})
      self.assertLen(self.open(), 1)
      self.assertEqual(self.open()[0]['label'].shape, (4, 6))

  def test_the_case_of_a_stem_matters(self):
    self.pair('Beach.png', 'beach.png')
    self.write(splits={'train': 'Beach'})
    self.assert_user_error(self.open, self.root / 'images/Beach.png', 'masks/Beach.png')


class SplitFoldersTest(FolderTest):
  @parameterized.parameters(('images', 'masks'), ('img_dir', 'ann_dir'))
  def test_folders_called_as_splits_are_the_splits(self, images, masks):
    self.write('a\nb', ['train/x', 'train/y', 'val/deep/x'])
    (self.root / 'images').rename(self.root / images)
    (self.root / 'masks').rename(self.root / masks)
    self.assertEqual(self.open('train').names, [f'{images}/train/x.png', f'{images}/train/y.png'])
    self.assertEqual(self.open('val').names, [f'{images}/val/deep/x.png'])
    self.assertEqual(self.open('val')[0]['label'].shape, (4, 6))
    self.assert_user_error(lambda: self.open('test'), "'test'", 'train, val')
    self.write(splits={'mine': 'val/deep/x'})
    self.assertEqual(self.open('mine').names, [f'{images}/val/deep/x.png'])
    self.assert_user_error(lambda: self.open('train'), "'train'", 'mine')

  @parameterized.parameters('z', 'other/z')
  def test_other_pictures_beside_them_are_split_by_hash(self, other):
    self.write('a\nb', ['train/x', 'val/x', other])
    self.assertLen([*self.open('train').names, *self.open('val').names], 3)
    self.assert_user_error(lambda: self.open('test'), 'train, val')

  def test_a_missing_mask_is_named_with_its_folder(self):
    self.write('a\nb', ['train/x', 'val/x'])
    (self.root / 'masks/val/x.png').unlink()
    self.assertLen(self.open('train'), 1)
    self.assert_user_error(lambda: self.open('val'), self.root / 'masks/val/x.png')


class SplitsTest(FolderTest):
  def stems(self, split):
    return [Path(name).stem for name in self.open(split).names]

  def test_listed_splits_hold_what_is_listed_in_its_order(self):
    self.write('a\nb', ['x', 'y', 'z#1'], {'train': 'z#1\n\nx\n', 'mine': 'y'})
    self.assertEqual(self.stems('train'), ['z#1', 'x'])
    self.assertEqual(self.stems('mine'), ['y'])
    self.assert_user_error(lambda: self.open('val'), "'val'", 'mine, train')

  def test_a_stem_that_does_not_exist_or_comes_twice(self):
    self.write('a\nb', ['x', 'y'], {'train': 'x\n\nzz', 'val': 'y\ny'})
    self.assert_user_error(
      lambda: self.open('train'), self.root / 'splits/train.txt', 'line 3', "'zz'"
    )
    self.assert_user_error(lambda: self.open('val'), self.root / 'splits/val.txt', 'line 2', "'y'")

  def test_a_mask_is_wanted_only_for_what_is_listed(self):
    self.write('a\nb', ['x', 'y'], {'train': 'x'})
    (self.root / 'masks/y.png').unlink()
    self.assertEqual(self.stems('train'), ['x'])
    self.write(splits={'train': 'x\ny'})
    self.assert_user_error(self.open, self.root / 'images/y.png', self.root / 'masks/y.png')

  def test_without_lists_a_fifth_is_val_and_new_pictures_move_none(self):
    stems = [f'{i:03d}' for i in range(200)]
    self.write('a\nb', stems)
    train, val = self.stems('train'), self.stems('val')
    self.assertEqual(sorted(train + val), stems)
    self.assertBetween(len(val), 25, 55)
    self.write(masks=[f'new{i}' for i in range(20)])
    self.assertLessEqual(set(train), set(self.stems('train')))
    self.assertLessEqual(set(val), set(self.stems('val')))
    self.assert_user_error(lambda: self.open('test'), "'test'", 'train, val')

  @parameterized.parameters(2, 3, 4)
  def test_neither_split_is_empty_with_few_pictures(self, count):
    for prefix in 'abcdefgh':
      images = {f'{prefix}{i}': None for i in range(count)}
      train, val = folder._hashed('train', images), folder._hashed('val', images)
      self.assertNotEmpty(train)
      self.assertNotEmpty(val)
      self.assertEqual(sorted(train + val), list(images))


if __name__ == '__main__':
  absltest.main()
