import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import ade20k
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'
SAMPLE = SHARED / 'ade20k' / 'sceneparsing_sampleData'

# Lines of the owners' objectInfo150.txt: Idx, Ratio, Train, Val, Name.
OBJECT_INFO = """
1\t0.1576\t11664\t1172\twall
2\t0.1072\t6046\t612\tbuilding, edifice
3\t0.0878\t8265\t796\tsky
8\t0.0231\t1906\t199\tbed 
9\t0.0198\t4688\t460\twindowpane, window 
15\t0.0118\t6666\t796\tdoor, double door
22 \t0.0074\t709\t75\twater
45\t0.0019\t549\t46\tchest of drawers, chest, bureau, dresser
59\t0.0015\t139\t18\tscreen door, screen
90\t0.0007\t618\t53\ttelevision, television receiver, television set, tv, tv set, idiot box
104\t0.0006\t52\t4\tship
124\t0.0004\t418\t83\ttrade name, brand name, brand, marque
131\t0.0003\t108\t13\tscreen, silver screen, projection screen
149\t0.0002\t775\t96\tclock
150\t0.0002\t421\t56\tflag
"""  # noqa: W291


class Ade20kTest(parameterized.TestCase):
  """The three pictures of the owners' sample, which has no folders of splits, put into `val`."""

  def setUp(self):
    super().setUp()
    if not SAMPLE.is_dir():
      self.skipTest(f'{SAMPLE} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    for kind in ('images', 'annotations'):
      (self.root / 'ADEChallengeData2016' / kind).mkdir(parents=True)
      (self.root / 'ADEChallengeData2016' / kind / 'validation').symlink_to(SAMPLE / kind)
    self.config = get_config('ade20k').data
    self.config.dir = str(self.root)

  def open(self, split='val'):
    return ade20k.open_split(self.config, split, seed=0)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_names_are_the_first_ones_of_the_owners(self):
    self.assertLen(set(ade20k.INFO.class_names), 150)
    for line in OBJECT_INFO.strip('\n').split('\n'):
      index, *_, names = line.split('\t')
      self.assertEqual(ade20k.INFO.class_names[int(index) - 1], names.split(',')[0].strip())

  @parameterized.parameters(
    (0, 'wall', (120, 120, 120)),
    (2, 'sky', (6, 230, 230)),
    (12, 'person', (150, 5, 61)),
    (148, 'clock', (102, 255, 0)),
    (149, 'flag', (92, 0, 255)),
  )
  def test_colours_are_those_of_the_owners(self, index, name, colour):
    self.assertEqual(ade20k.INFO.class_names[index], name)
    self.assertEqual(tuple(ade20k.INFO.palette[index].tolist()), colour)
    self.assertEqual(ade20k.INFO.palette.shape, (150, 3))

  def test_masks_count_from_1_and_0_is_ignored(self):
    source = self.open()
    self.assertLen(source, 3)
    for i, name in enumerate(source.names):
      self.assertEqual(name, f'images/validation/ADE_val_{i + 1:08d}.jpg')
      raw = np.asarray(Image.open(SAMPLE / f'annotations/ADE_val_{i + 1:08d}.png'))
      record = source[i]
      image = np.asarray(Image.open(SAMPLE / f'images/ADE_val_{i + 1:08d}.jpg'))
      np.testing.assert_array_equal(record['image'], image)
      counts = np.bincount(raw.ravel(), minlength=256)
      np.testing.assert_array_equal(
        np.bincount(record['label'].ravel(), minlength=256), np.r_[counts[1:], counts[0]]
      )

  def test_what_is_wrong_is_told(self):
    self.assert_user_error(lambda: self.open('test'), "'test'", 'train, val')
    self.assert_user_error(lambda: self.open('train'), 'images/training')
    inner = self.root / 'ADEChallengeData2016'
    (inner / 'annotations/validation').unlink()
    (inner / 'annotations/validation').mkdir()
    mask = SAMPLE / 'annotations/ADE_val_00000001.png'
    (inner / 'annotations/validation' / mask.name).symlink_to(mask)
    self.assert_user_error(self.open, 'ADE_val_00000002.jpg', 'has no mask', '1 more')
    (inner / 'images/validation').unlink()
    (inner / 'images').rmdir()
    self.assert_user_error(self.open, self.root, 'expected images')


if __name__ == '__main__':
  absltest.main()
