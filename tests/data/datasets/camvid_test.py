import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax import IGNORE
from seg_jax.data.datasets import camvid
from seg_jax.data.label_map import LabelMap, read_label
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'


class CamvidTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not (SHARED / 'camvid').is_dir():
      self.skipTest(f'{SHARED / "camvid"} is not there')
    self.config = get_config('camvid').data
    self.config.dir = str(SHARED / 'camvid')

  def open(self, split):
    return camvid.open_split(self.config, split, seed=0)

  @parameterized.parameters(('train', 367), ('val', 101), ('test', 233))
  def test_splits_have_the_published_numbers_of_pictures(self, split, count):
    source = self.open(split)
    self.assertLen(source, count)
    self.assertLen(set(source.names), count)
    self.assertEqual({source.size(i) for i in range(0, count, 25)}, {(360, 480)})
    self.assertTrue(source.names[0].startswith(f'{split}/'))

  def test_records_are_what_pillow_reads_with_11_as_ignored(self):
    source = self.open('test')
    for i in range(0, len(source), 29):
      record, name = source[i], Path(source.names[i])
      image = np.asarray(Image.open(SHARED / 'camvid' / name))
      mask = np.asarray(Image.open(SHARED / 'camvid/testannot' / name.with_suffix('.png').name))
      np.testing.assert_array_equal(record['image'], image)
      np.testing.assert_array_equal(record['label'], np.where(mask == 11, 255, mask))

  def test_class_shares_of_test_are_those_counted_before(self):
    labels = sorted((SHARED / 'camvid/testannot').iterdir())
    counts = sum(
      np.bincount(read_label(path, camvid.LABELS).ravel(), minlength=256) for path in labels
    )
    published = [17.07, 24.61, 1.18, 25.81, 9.27, 11.25, 1.01, 1.18, 3.97, 0.63, 0.19]
    np.testing.assert_allclose(100 * counts[:11] / counts.sum(), published, atol=0.006)
    np.testing.assert_allclose(100 * counts[IGNORE] / counts.sum(), 3.83, atol=0.006)

  def test_colours_are_those_of_the_original_masks(self):
    originals = sorted((SHARED / 'camvid_rgb11').glob('*_labels/*.png'))
    if not originals:
      self.skipTest(f'{SHARED / "camvid_rgb11"} is not there')
    colours = {tuple(colour): i for i, colour in enumerate(camvid.INFO.palette.tolist())}
    by_colour = LabelMap({**colours, (0, 0, 0): IGNORE})
    seen = set()
    for path in originals:
      folder = path.parent.name.replace('_labels', 'annot')
      grey = SHARED / 'camvid' / folder / path.name.replace('_L', '')
      label = read_label(grey, camvid.LABELS)
      np.testing.assert_array_equal(read_label(path, by_colour), label)
      seen.update(np.unique(label).tolist())
    self.assertEqual(seen, {*range(11), IGNORE})


class Original32Test(parameterized.TestCase):
  """The original's 32 classes: five real pictures in fast.ai's layout, and trees made of them."""

  def setUp(self):
    super().setUp()
    self.real = SHARED / 'camvid_32class_960x720'
    if not self.real.is_dir():
      self.skipTest(f'{self.real} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = get_config('camvid').data
    self.config.variant = '32'

  def open(self, root, split='train'):
    self.config.dir = str(root)
    return camvid.open_split(self.config, split, seed=0)

  def raw(self):
    masks = sorted((self.real / 'labels').glob('*.png'))
    return [np.asarray(Image.open(path)) for path in masks]

  def write_owners(self, name, mask):
    for folder, file, pixels in (
      ('701_StillsRaw_full', f'{name}.png', np.zeros_like(mask)),
      ('LabeledApproved_full', f'{name}_L.png', mask),
    ):
      (self.root / folder).mkdir(exist_ok=True)
      Image.fromarray(pixels).save(self.root / folder / file)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_the_32_classes_and_some_of_their_colours(self):
    info = camvid.INFOS['32']
    self.assertEqual(info.class_names, tuple((self.real / 'codes.txt').read_text().split()))
    colours = dict(zip(info.class_names, info.palette.tolist(), strict=True))
    for name, colour in (
      ('Animal', [64, 128, 64]),
      ('OtherMoving', [128, 64, 64]),
      ('TrafficCone', [0, 0, 64]),
      ('Void', [0, 0, 0]),
      ('Wall', [64, 192, 0]),
    ):
      self.assertEqual(colours[name], colour)
    self.assertLen(np.unique(info.palette, axis=0), 32)
    shared = set(camvid.INFO.class_names) & set(colours)
    eleven = dict(zip(camvid.INFO.class_names, camvid.INFO.palette.tolist(), strict=True))
    self.assertLen(shared, 9)  # the others are Column_Pole and Sidewalk there
    self.assertEqual({n: colours[n] for n in shared}, {n: eleven[n] for n in shared})

  def test_indices_are_the_classes_and_void_is_ignored(self):
    source = self.open(self.real)
    self.assertLen(source, 5)
    for i, raw in enumerate(self.raw()):
      record = source[i]
      image = np.asarray(Image.open(self.real / source.names[i]))
      np.testing.assert_array_equal(record['image'], image)
      expected = np.bincount(raw.ravel(), minlength=256)
      expected[255], expected[30] = expected[30], 0
      np.testing.assert_array_equal(np.bincount(record['label'].ravel(), minlength=256), expected)

  def test_the_owners_colours_decode_to_the_same_classes(self):
    for path, raw in zip(sorted((self.real / 'images').iterdir()), self.raw(), strict=True):
      self.write_owners(path.stem, camvid.INFOS['32'].palette[raw][::4, ::4])
    source = self.open(self.root)
    for i, raw in enumerate(self.raw()):
      expected = np.where(raw == 30, 255, raw)[::4, ::4]
      np.testing.assert_array_equal(source[i]['label'], expected)
    self.assertEmpty(self.open(self.root, 'val'))

  def test_grouped_they_are_segnets_classes_but_for_other_moving(self):
    """SegNet's edition has every second row and column of the same pictures."""
    if not (SHARED / 'camvid').is_dir():
      self.skipTest(f'{SHARED / "camvid"} is not there')
    self.config.variant = '32to11'
    source = self.open(self.real)
    self.assertEqual(source.info.class_names, camvid.INFO.class_names)
    for i, raw in enumerate(self.raw()):
      segnet = np.asarray(
        Image.open(SHARED / 'camvid/trainannot' / Path(source.names[i]).name)
      ).astype(int)
      label = source[i]['label'][1::2, ::2]
      compared = raw[1::2, ::2] != 14
      same = label == np.where(segnet == 11, 255, segnet)
      self.assertGreater(same[compared].mean(), 0.995)
      self.assertEqual(set(np.unique(label[~compared])) - {8}, set())

  def test_every_name_of_segnets_edition_is_told_its_split(self):
    folder = SHARED / 'camvid'
    if not folder.is_dir():
      self.skipTest(f'{folder} is not there')
    for split in ('train', 'val', 'test'):
      found = {camvid._split_of(path) for path in (folder / split).iterdir()}
      self.assertEqual(found, {split})
    self.assert_user_error(lambda: camvid._split_of(Path('a/0099.png')), 'a/0099.png', 'CamVid')

  def test_the_one_file_with_meaningless_colours(self):
    mask = np.zeros((2, 3, 3), np.uint8)
    mask[0], mask[1, :2] = (128, 128, 0), (128, 128, 26)
    self.write_owners('Seq05VD_f02610', mask)
    self.write_owners('Seq05VD_f02640', mask)
    source = self.open(self.root, 'test')
    self.assertEqual(source[0]['label'].tolist(), [[26] * 3, [255] * 3])
    self.assert_user_error(lambda: source[1], 'Seq05VD_f02640_L.png', '128,128,26 (2 pixels)')

  def test_what_is_wrong_is_told(self):
    self.write_owners('0006R0_f00930', np.zeros((2, 3, 3), np.uint8))
    (self.root / 'LabeledApproved_full/0006R0_f00930_L.png').rename(
      self.root / 'LabeledApproved_full/0006R0_f00960_L.png'
    )
    self.assert_user_error(lambda: self.open(self.root), '0006R0_f00930_L.png', 'has no mask')
    other = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.assert_user_error(lambda: self.open(other), other, '701_StillsRaw_full or codes.txt')
    for name in ('images', 'labels'):
      (other / name).symlink_to(self.real / name)
    names = sorted(camvid.INFOS['32'].class_names)  # where SUV comes before Sidewalk
    (other / 'codes.txt').write_text('\n'.join(names))
    self.assert_user_error(lambda: self.open(other), other / 'codes.txt', 'Animal', 'Wall')
    self.config.variant = ''
    self.assert_user_error(lambda: self.open(other), 'data.variant')


if __name__ == '__main__':
  absltest.main()
