from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data import files
from seg_jax.data.datasets import camvid

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
      np.bincount(files.read_label(path, camvid.LABELS).ravel(), minlength=256) for path in labels
    )
    published = [17.07, 24.61, 1.18, 25.81, 9.27, 11.25, 1.01, 1.18, 3.97, 0.63, 0.19]
    np.testing.assert_allclose(100 * counts[:11] / counts.sum(), published, atol=0.006)
    np.testing.assert_allclose(100 * counts[files.IGNORE] / counts.sum(), 3.83, atol=0.006)

  def test_colours_are_those_of_the_original_masks(self):
    originals = sorted((SHARED / 'camvid_rgb11').glob('*_labels/*.png'))
    if not originals:
      self.skipTest(f'{SHARED / "camvid_rgb11"} is not there')
    colours = {tuple(colour): i for i, colour in enumerate(camvid.INFO.palette.tolist())}
    by_colour = files.LabelMap({**colours, (0, 0, 0): files.IGNORE})
    seen = set()
    for path in originals:
      folder = path.parent.name.replace('_labels', 'annot')
      grey = SHARED / 'camvid' / folder / path.name.replace('_L', '')
      label = files.read_label(grey, camvid.LABELS)
      np.testing.assert_array_equal(files.read_label(path, by_colour), label)
      seen.update(np.unique(label).tolist())
    self.assertEqual(seen, {*range(11), files.IGNORE})


if __name__ == '__main__':
  absltest.main()
