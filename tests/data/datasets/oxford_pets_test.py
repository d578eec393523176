import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import open_dataset, oxford_pets
from seg_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / 'shared' / 'data'
SAMPLE = SHARED / 'oxford_pets'


class OxfordPetsTest(parameterized.TestCase):
  """The real pictures, with lists of the owners' form that are written here."""

  def setUp(self):
    super().setUp()
    if not SAMPLE.is_dir():
      self.skipTest(f'{SAMPLE} is not there')
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    (self.root / 'annotations').mkdir()
    (self.root / 'images').symlink_to(SAMPLE / 'images')
    (self.root / 'annotations/trimaps').symlink_to(SAMPLE / 'annotations/trimaps')
    self.names = sorted(path.stem for path in (SAMPLE / 'images').glob('*.jpg'))
    self.write('trainval', self.names[:-8])
    self.write('test', self.names[-8:])
    self.config = get_config('oxford_pets').data
    self.config.dir = str(self.root)

  def write(self, split, names):
    text = '#Image CLASS-ID SPECIES BREED ID\n' + ''.join(f'{name} 1 1 1\n' for name in names)
    (self.root / f'annotations/{split}.txt').write_text(text)

  def open(self, split, variant=''):
    self.config.variant = variant
    return oxford_pets.open_split(self.config, split, seed=0)

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  @parameterized.parameters(
    ('', ('pet', 'background', 'border'), [1, 2, 3]),
    ('trimap', ('pet', 'background', 'border'), [1, 2, 3]),
    ('binary', ('background', 'pet'), [2, 1]),
  )
  def test_every_trimap_means_what_its_values_say(self, variant, names, values):
    counts = np.zeros(256, np.int64)
    for split in ('trainval', 'test'):
      source = self.open(split, variant)
      self.assertEqual(source.info.class_names, names)
      for i in range(len(source)):
        counts += np.bincount(source[i]['label'].ravel(), minlength=256)
    raw = sum(
      np.bincount(np.asarray(Image.open(path)).ravel(), minlength=4)
      for path in (SAMPLE / 'annotations/trimaps').glob('[!.]*.png')
    )
    self.assertEqual(counts[: len(values)].tolist(), raw[values].tolist())
    self.assertEqual(counts[255], raw[3] if variant == 'binary' else 0)
    self.assertEqual(counts.sum(), raw.sum())

  def test_pictures_are_those_of_the_lists(self):
    source = self.open('test')
    self.assertEqual(source.names, [f'images/{name}.jpg' for name in self.names[-8:]])
    image = np.asarray(Image.open(SAMPLE / 'images' / f'{self.names[-8]}.jpg').convert('RGB'))
    np.testing.assert_array_equal(source[0]['image'], image)

  def test_train_and_val_are_parts_of_trainval(self):
    parts = [self.open(split).names for split in ('train', 'val')]
    self.assertEqual(sorted(parts[0] + parts[1]), sorted(self.open('trainval').names))
    self.assertBetween(len(parts[1]), 5, 35)
    self.assertLen(open_dataset(self.config, 'val', seed=0), len(parts[1]))

  def test_a_picture_may_be_another_format_inside(self):
    """As some of the owners' are: here a palette GIF and an RGBA PNG of 4 x 3."""
    colours = np.zeros((4, 3, 4), np.uint8)
    colours[..., 0] = colours[..., 3] = 255
    for name in ('images', 'annotations/trimaps'):
      (self.root / name).unlink()
      (self.root / name).mkdir()
    for name, image in (
      ('a', Image.fromarray(colours[..., :3]).convert('P')),
      ('b', Image.fromarray(colours)),
    ):
      image.save(self.root / f'images/{name}.jpg', format='GIF' if name == 'a' else 'PNG')
      Image.fromarray(np.ones((4, 3), np.uint8)).save(self.root / f'annotations/trimaps/{name}.png')
      (self.root / f'annotations/trimaps/._{name}.png').write_bytes(b'\0\5\26\7')
    self.write('test', ['a', 'b'])
    source = self.open('test')
    for i in range(2):
      np.testing.assert_array_equal(source[i]['image'], colours[..., :3])

  def test_what_is_wrong_is_told(self):
    self.write('test', [*self.names[-8:], 'Abyssinian_999'])
    listing = self.root / 'annotations/test.txt'
    self.assert_user_error(lambda: self.open('test'), listing, '1 of the 9', 'Abyssinian_999.jpg')
    self.assert_user_error(lambda: self.open('all'), "'all'", 'train, val, trainval, test')
    listing.unlink()
    self.assert_user_error(lambda: self.open('test'), listing)
    (self.root / 'images').unlink()
    self.assert_user_error(lambda: self.open('trainval'), self.root, 'expected images')


if __name__ == '__main__':
  absltest.main()
