import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from seg_jax.data.datasets import base
from seg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / 'shared' / 'data'


class ListingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in ('i/a.jpg', 'i/b.jpg', 'm/a.png', 'm/b.png', 'm/c.png', 'd/a_depth.png'):
      (self.root / name).parent.mkdir(exist_ok=True)
      (self.root / name).touch()
    self.listing = self.root / 'train.txt'

  def assert_user_error(self, function, *says):
    with self.assertRaises(UserError) as caught:
      function()
    for part in says:
      self.assertIn(str(part), str(caught.exception))

  def test_files_of_a_listing_in_its_order(self):
    self.listing.write_bytes(b'\xef\xbb\xbfb\r\n\r\n  a  \r\n')
    found = base.listed(self.listing, self.root / 'i', '.jpg')
    self.assertEqual(list(found.items()), [(s, self.root / f'i/{s}.jpg') for s in ('b', 'a')])

  def test_half_a_download_is_noticed(self):
    self.listing.write_text('a\nb\nc\nd\n')
    self.assert_user_error(
      lambda: base.listed(self.listing, self.root / 'i', '.jpg'),
      self.root / 'i',
      '2 of the 4 files',
      self.listing,
      'c.jpg',
    )
    self.assert_user_error(
      lambda: base.listed(self.listing, self.root / 'nowhere', '.jpg'), '4 of the 4 files'
    )
    self.listing.unlink()
    self.assert_user_error(
      lambda: base.listed(self.listing, self.root / 'i', '.jpg'), self.listing, 'no such file'
    )

  def test_records_hold_the_files_of_their_stem_and_the_extras_asked_for(self):
    images = {stem: self.root / f'i/{stem}.jpg' for stem in ('b', 'a')}
    places = {'label': (self.root / 'm', ''), 'depth': (self.root / 'd', '_depth')}
    self.assertEqual(
      base.make_records(images, **places),
      [{'image': image, 'label': self.root / f'm/{stem}.png'} for stem, image in images.items()],
    )
    with_depth = base.make_records({'a': images['a']}, ('depth',), **places)
    self.assertEqual(with_depth[0]['depth'], self.root / 'd/a_depth.png')
    self.assert_user_error(
      lambda: base.make_records(images, ('depth',), **places),
      images['b'],
      'has no depth',
      self.root / 'd/b_depth.png',
    )

  def test_lines_are_told_with_their_number_and_without_comments(self):
    self.listing.write_text('one # first\n\n# nothing\n two\n')
    self.assertEqual(
      list(base.lines(self.listing, '#')),
      [(f'{self.listing}, line 1', 'one'), (f'{self.listing}, line 4', 'two')],
    )
    self.assertEqual(next(base.lines(self.listing))[1], 'one # first')
    self.listing.write_bytes(b'\xff\xfe\0a')
    self.assert_user_error(lambda: list(base.lines(self.listing)), self.listing, 'UTF-8')


class VocColormapTest(absltest.TestCase):
  def test_first_colours_are_those_published(self):
    self.assertEqual(
      base.voc_colormap(9).tolist(),
      [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
        [64, 0, 0],
      ],
    )

  def test_all_are_different_and_those_of_pascal_vocs_own_files(self):
    colours = base.voc_colormap(256)
    self.assertLen(np.unique(colours, axis=0), 256)
    mask = SHARED / 'pascal_voc/VOCdevkit/VOC2012/SegmentationClass/2007_000032.png'
    if not mask.exists():
      self.skipTest(f'{mask} is not there')
    palette = Image.open(mask).getpalette()
    self.assertEqual(colours.ravel().tolist(), palette)


if __name__ == '__main__':
  absltest.main()
