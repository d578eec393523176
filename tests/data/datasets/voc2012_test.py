"""The 34 real pictures of VOC 2012 at hand; SBD's files are small ones, written here."""

import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from scipy.io import savemat

from configs.common import get_config
from seg_jax.data import instances
from seg_jax.data.datasets import base, voc2012
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data' / 'pascal_voc' / 'VOCdevkit'


class Voc2012Test(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.config = get_config('voc2012').data

  def open(self, root, split, *extras):
    self.config.dir, self.config.extras = str(root), extras
    return voc2012.open_split(self.config, split, seed=0)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    self.assertNotIn('\n', str(caught.exception))
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_classes_colours_and_numbers_are_those_published(self):
    info = voc2012.INFO
    names = (
      'background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse '
      'motorbike person pottedplant sheep sofa train tvmonitor'
    )
    self.assertEqual(info.class_names, tuple(names.split()))
    colours = dict(zip(info.class_names, info.palette.tolist(), strict=True))
    for name, colour in (
      ('background', [0, 0, 0]),
      ('aeroplane', [128, 0, 0]),
      ('person', [192, 128, 128]),
      ('tvmonitor', [0, 64, 128]),
    ):
      self.assertEqual(colours[name], colour)
    self.assertEqual(
      info.num_images, {'train': 1464, 'val': 1449, 'trainval': 2913, 'train_aug': 10582}
    )
    self.assertEqual(info.things, tuple(range(1, 21)))


class RealFilesTest(Voc2012Test):
  def setUp(self):
    super().setUp()
    if not SHARED.is_dir():
      self.skipTest(f'{SHARED} is not there')

  @parameterized.parameters(('train', 20), ('val', 14), ('trainval', 34))
  def test_splits_are_those_listed_wherever_the_folder_is_named_from(self, split, count):
    listing = SHARED / f'VOC2012/ImageSets/Segmentation/{split}.txt'
    names = [f'JPEGImages/{stem}.jpg' for stem in listing.read_text().split()]
    for root in (SHARED / 'VOC2012', SHARED, SHARED.parent):
      source = self.open(root, split)
      self.assertEqual(source.names, names)
      self.assertLen(names, count)

  def test_records_and_their_histogram_are_what_pillow_reads(self):
    source = self.open(SHARED, 'trainval')
    histogram, expected = np.zeros((2, 256), np.int64)
    for i, name in enumerate(source.names):
      record = source[i]
      image = np.asarray(Image.open(SHARED / 'VOC2012' / name))
      mask = Image.open(SHARED / f'VOC2012/SegmentationClass/{Path(name).stem}.png')
      np.testing.assert_array_equal(record['image'], image)
      self.assertEqual(source.size(i), image.shape[:2])
      self.assertEqual(mask.getpalette()[: 21 * 3], voc2012.INFO.palette.ravel().tolist())
      histogram += np.bincount(record['label'].ravel(), minlength=256)
      expected += np.bincount(np.asarray(mask).ravel(), minlength=256)
      np.testing.assert_array_equal(record['label'], np.asarray(mask))
    np.testing.assert_array_equal(histogram, expected)
    self.assertGreater(expected[255], 0)
    self.assertEqual(np.count_nonzero(expected[1:21]), 18)

  def test_each_object_has_the_class_of_its_pixels(self):
    source = self.open(SHARED, 'trainval', 'instances')
    classes = set()
    for i, name in enumerate(source.names):
      record = source[i]
      stem = Path(name).stem
      ids, mask = (
        np.asarray(Image.open(SHARED / f'VOC2012/Segmentation{kind}/{stem}.png'))
        for kind in ('Object', 'Class')
      )
      objects = sorted(set(np.unique(ids)) - {0, 255})
      self.assertEqual(len(record['classes']), len(objects))
      padded = instances.padded(record, 12)
      for row, k in enumerate(objects):
        (kind,) = set(mask[ids == k].tolist())
        np.testing.assert_array_equal(padded['masks'][row], ids == k)
        self.assertEqual(padded['classes'][row], kind)
        classes.add(kind)
      np.testing.assert_array_equal(record['instances'] > 0, (mask > 0) & (mask < 255))
      self.assertFalse(record['is_crowd'].any())
    self.assertLen(classes, 18)


class SbdTest(Voc2012Test):
  """Pictures a and b are VOC's train, c its val; SBD has masks of b to f."""

  SIZE = (6, 8)

  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationObject'):
      (self.root / folder).mkdir()
    (self.root / 'ImageSets/Segmentation').mkdir(parents=True)
    for split, stems in (('train', 'b\na\n'), ('val', 'c\n')):
      (self.root / f'ImageSets/Segmentation/{split}.txt').write_text(stems)
    rng = np.random.default_rng(0)
    self.ids, self.classes = {}, {}  # of SBD, by stem
    for count, stem in enumerate('abcdef'):
      Image.new('RGB', self.SIZE[::-1]).save(self.root / f'JPEGImages/{stem}.jpg')
      self.ids[stem] = rng.integers(0, count + 1, self.SIZE, np.uint8)
      self.classes[stem] = rng.integers(1, 21, count)
    for stem in 'abc':
      self.save('SegmentationClass', stem, np.full(self.SIZE, 7))
      self.save('SegmentationObject', stem, np.full(self.SIZE, 1))

  def save(self, folder, stem, mask):
    (self.root / folder).mkdir(exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(base.voc_colormap(256).tobytes())
    image.save(self.root / folder / f'{stem}.png')

  def label(self, stem):
    """The class mask that SBD's objects make."""
    return np.append(0, self.classes[stem])[self.ids[stem]].astype(np.uint8)

  def sbd(self, root='benchmark_RELEASE/dataset'):
    """As MATLAB wrote it: a struct with columns, and `GTcls` with fields that nobody needs."""
    for kind in ('cls', 'inst'):
      (self.root / root / kind).mkdir(parents=True)
    for stem in 'bcdef':
      edges = np.zeros((20, 1), object)
      cls = {'Boundaries': edges, 'Segmentation': self.label(stem), 'CategoriesPresent': [[1.0]]}
      inst = {
        'Segmentation': self.ids[stem],
        'Boundaries': edges,
        'Categories': self.classes[stem][:, None].astype(float),
      }
      savemat(self.root / root / 'cls' / f'{stem}.mat', {'GTcls': cls})
      savemat(self.root / root / 'inst' / f'{stem}.mat', {'GTinst': inst})

  def check(self, *extras):
    """The records of train_aug: VOC's own first, in their order, then SBD's, without val."""
    source = self.open(self.root, 'train_aug', *extras)
    self.assertEqual(source.names, [f'JPEGImages/{stem}.jpg' for stem in 'badef'])
    for i, stem in enumerate('badef'):
      own = stem in 'ab'
      np.testing.assert_array_equal(
        source[i]['label'], np.full(self.SIZE, 7) if own else self.label(stem)
      )
    return source

  @parameterized.parameters('benchmark_RELEASE/dataset', 'sbd')
  def test_train_aug_from_sbd_itself(self, root):
    self.sbd(root)
    self.check()

  def test_train_aug_from_pngs(self):
    for stem in 'bcdef':
      self.save('SegmentationClassAug', stem, self.label(stem))
    (self.root / 'SegmentationClassAug/._d.png').write_bytes(b'of a Mac')
    self.check()
    self.assert_user_error(
      lambda: self.open(self.root, 'train_aug', 'instances'), 'SegmentationClassAug', 'SBD'
    )

  def test_objects_are_those_of_the_table(self):
    """One object, several and, in the first of VOC's own, a whole picture of one."""
    self.sbd()
    source = self.check('instances')
    self.assertEqual(source[0]['instances'].tolist(), np.ones(self.SIZE).tolist())
    self.assertEqual(source[0]['classes'].tolist(), [7])
    for i, stem in enumerate('def', 2):
      record = source[i]
      np.testing.assert_array_equal(record['instances'], self.ids[stem])
      np.testing.assert_array_equal(record['classes'], self.classes[stem])
      self.assertFalse(record['is_crowd'].any())

  @parameterized.parameters(0, 1)
  def test_tables_of_no_object_and_of_one(self, count):
    self.sbd()
    ids = np.zeros(self.SIZE, np.uint8)
    ids[:, 4:] = count
    table = {'Segmentation': ids, 'Categories': np.full((count, 1), 15.0)}
    savemat(self.root / 'benchmark_RELEASE/dataset/inst/d.mat', {'GTinst': table})
    record = self.open(self.root, 'train_aug', 'instances')[2]
    np.testing.assert_array_equal(record['instances'], ids)
    self.assertEqual(record['classes'].tolist(), [15] * count)

  def test_what_is_missing_is_told(self):
    self.assert_user_error(
      lambda: self.open(self.root, 'train_aug'), 'train_aug', 'SegmentationClassAug', 'sbd/cls'
    )
    self.sbd()
    (self.root / 'benchmark_RELEASE/dataset/inst/e.mat').unlink()
    self.check()
    self.assert_user_error(
      lambda: self.open(self.root, 'train_aug', 'instances'), '1 of the 6 files', 'e.mat'
    )
    (self.root / 'JPEGImages/f.jpg').unlink()
    self.assert_user_error(
      lambda: self.open(self.root, 'train_aug'), '1 of the 3 files', 'JPEGImages', 'f.jpg'
    )

  def test_half_a_download_and_an_unknown_split(self):
    (self.root / 'SegmentationClass/a.png').unlink()
    self.assert_user_error(
      lambda: self.open(self.root, 'train'),
      self.root / 'JPEGImages/a.jpg',
      'has no mask',
      self.root / 'SegmentationClass/a.png',
    )
    (self.root / 'JPEGImages/c.jpg').unlink()
    self.assert_user_error(lambda: self.open(self.root, 'val'), '1 of the 1 files', 'c.jpg')
    self.assert_user_error(lambda: self.open(self.root, 'test'), "'test'", 'train, val, trainval')

  def test_files_that_are_not_what_they_are_called(self):
    self.sbd()
    folder = self.root / 'benchmark_RELEASE/dataset'
    source = self.open(self.root, 'train_aug', 'instances')
    (folder / 'cls/d.mat').write_bytes(b'hello')
    self.assert_user_error(lambda: source[2], folder / 'cls/d.mat', 'GTcls')
    savemat(folder / 'cls/d.mat', {'GTcls': {'Boundaries': 0}})
    self.assert_user_error(lambda: source[2], folder / 'cls/d.mat', 'GTcls')
    table = {'Segmentation': np.full(self.SIZE, 3, np.uint8), 'Categories': [[1.0], [2.0]]}
    savemat(folder / 'inst/e.mat', {'GTinst': table})
    self.assert_user_error(lambda: source[3], folder / 'inst/e.mat', 'object 3', '2 in Categories')
    self.save('SegmentationObject', 'b', np.ones((5, 8)))
    self.assert_user_error(lambda: source[0], 'SegmentationObject/b.png', '(5, 8)', '(6, 8)')
    self.save('SegmentationClass', 'a', np.full(self.SIZE, 21))
    self.assert_user_error(lambda: source[1], 'SegmentationClass/a.png', 'value 21', '0 to 20')


if __name__ == '__main__':
  absltest.main()
