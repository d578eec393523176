import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import cv2
import jax
import numpy as np
import pytest
import tifffile
from absl.testing import absltest, parameterized
from PIL import ExifTags, Image

from seg_jax import pictures, settings
from seg_jax.data import bands, transforms
from seg_jax.data.datasets import open_dataset
from seg_jax.errors import UserError
from seg_jax.inference.predict import predict
from seg_jax.inspection import inspect
from seg_jax.training.loop import train
from tests.training import tiny

RNG = np.random.default_rng(0)
FIVE = RNG.integers(0, 65536, (20, 30, 5), np.uint16)
FOUR = RNG.integers(0, 256, (20, 30, 4), np.uint8)
TOGETHER = {'planarconfig': 'contig', 'photometric': 'minisblack'}
APART = {'planarconfig': 'separate', 'photometric': 'minisblack'}


def bands_first(array):
  return np.ascontiguousarray(np.moveaxis(array, -1, 0))


class BandsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, array, name='x.tif', **options):
    path = self.folder / name
    tifffile.imwrite(path, array, **options)
    return path

  def assert_reads(self, path, expected):
    found = {'channels': expected.shape[-1]}
    read = bands.read_bands(path, **found, bits=8 * expected.dtype.itemsize)
    np.testing.assert_array_equal(read, expected)
    self.assertEqual(read.dtype, expected.dtype)
    self.assertEqual(bands.bands_size(path, **found), expected.shape[:2])

  @parameterized.parameters(
    (FIVE, TOGETHER),
    (FIVE, TOGETHER | {'compression': 'zlib', 'predictor': 2}),
    (FIVE, TOGETHER | {'tile': (16, 16)}),
    (FIVE, TOGETHER | {'byteorder': '>', 'bigtiff': True}),
    (FIVE, {}),  # without a word on the axes, tifffile makes a page of each row
    (FOUR, TOGETHER),
    (FOUR, {'photometric': 'rgb'}),
    (FIVE[..., :3], {'photometric': 'rgb'}),
  )
  def test_bands_stored_together(self, array, options):
    self.assert_reads(self.write(array, **options), array)

  @parameterized.parameters(
    (FIVE, APART),
    (FIVE, {'photometric': 'minisblack'}),  # a page for each
    (FIVE, {'imagej': True, 'metadata': {'axes': 'CYX'}}),
    (FOUR, APART),
    (FIVE[..., :1], {}),
    (FIVE[:5, :9], APART),  # as many rows as bands
    (FIVE[:9, :5], APART),
  )
  def test_bands_stored_apart(self, array, options):
    self.assert_reads(self.write(bands_first(array), **options), array)

  def test_one_band_without_an_axis_of_its_own(self):
    self.assert_reads(self.write(FIVE[..., 0]), FIVE[..., :1])

  @parameterized.parameters(
    (FOUR[..., 0],), (FOUR[..., :3],), (FOUR,), (FIVE[..., 0],), (FIVE[..., :3],), (FIVE[..., :4],)
  )
  def test_png_of_8_or_16_bits(self, array):
    path = self.folder / 'x.PNG'
    if array.dtype == np.uint8:
      Image.fromarray(array).save(path)
    else:  # Pillow has no such modes; OpenCV takes blue first
      stored = array if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[-1]]]
      path.write_bytes(cv2.imencode('.png', stored)[1].tobytes())
    self.assert_reads(path, array if array.ndim == 3 else array[..., None])

  def test_a_png_is_turned_as_its_exif_says(self):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for array in (FOUR, FOUR[..., :1]):
      Image.fromarray(array.squeeze()).save(self.folder / 'x.png', exif=exif)
      self.assert_reads(self.folder / 'x.png', np.rot90(array, -1))

  @parameterized.parameters(
    (FIVE, TOGETHER, 4, 16, '20 x 30 x 5', 'x 4 (data.channels)'),
    (FIVE[..., 0], {}, 5, 16, '20 x 30 x 1', 'x 5 (data.channels)'),
    (FIVE, TOGETHER, 5, 8, 'uint16', 'expected uint8', 'data.bits is 8'),
    (FOUR, TOGETHER, 4, 16, 'uint8', 'expected uint16'),
    (FIVE.astype(np.float32), TOGETHER, 5, 16, 'float32', 'expected uint16'),
    (FIVE.astype(np.int16), TOGETHER, 5, 16, 'int16', 'expected uint16'),
  )
  def test_other_bands_or_bits_than_told(self, array, options, channels, bits, *says):
    path = self.write(array, **options)
    with self.assertRaises(UserError) as caught:
      bands.read_bands(path, channels=channels, bits=bits)
    for part in (path, *says):
      self.assertIn(str(part), str(caught.exception))

  def test_what_cannot_be_read_is_the_users_error(self):
    whole = self.write(FIVE, **TOGETHER).read_bytes()
    Image.new('RGB', (4, 4)).save(self.folder / 'x.jpg')
    Image.fromarray(FOUR).save(self.folder / 'cut.png')
    (self.folder / 'empty.tif').write_bytes(b'')
    (self.folder / 'cut.tif').write_bytes(whole[: len(whole) // 2])
    (self.folder / 'text.tif').write_bytes(b'II*\0 no tiff')
    (self.folder / 'cut.png').write_bytes((self.folder / 'cut.png').read_bytes()[:200])
    for name in ('x.jpg', 'empty.tif', 'cut.tif', 'text.tif', 'cut.png', 'gone.tif', 'gone.png'):
      with self.subTest(name), self.assertRaisesRegex(UserError, name):
        bands.read_bands(self.folder / name, channels=5, bits=16)
    for name in ('empty.tif', 'gone.tif'):
      with self.subTest(name), self.assertRaisesRegex(UserError, name):
        bands.bands_size(self.folder / name, channels=5)

  def test_without_tifffile_it_is_said_how_to_get_it(self):
    path = self.write(FIVE, **TOGETHER)
    with (
      mock.patch.dict(sys.modules, {'tifffile': None}),
      self.assertRaisesRegex(UserError, r"pip install 'seg_jax\[tiff\]'"),
    ):
      bands.read_bands(path, channels=5, bits=16)


class TransformsTest(parameterized.TestCase):
  @parameterized.product(
    channels=(1, 2, 3, 4, 5, 9), dtype=(np.uint8, np.uint16), zoom=(0.5, 1.0, 1.7)
  )
  def test_every_band_is_moved_as_it_would_be_alone(self, channels, dtype, zoom):
    """Alone, that is as three equal bands of a common picture."""
    rng = np.random.default_rng(channels)
    image = rng.integers(0, np.iinfo(dtype).max, (23, 31, channels), dtype, endpoint=True)
    label = rng.integers(0, 9, (23, 31), np.uint8)
    mean = tuple(np.linspace(0.1, 0.9, channels))

    def changed(image, mean):
      rng = np.random.default_rng(3)
      options = {'crop_size': (24, 40), 'image_scale': zoom, 'scale_range': (1, 1), 'mean': mean}
      record = transforms.random_crop({'image': image, 'label': label}, rng, **options)
      return transforms.random_flip(record, rng)['image']

    result = changed(image, mean)
    self.assertEqual((result.shape, result.dtype), ((24, 40, channels), dtype))
    for c in range(channels):
      alone = changed(np.repeat(image[..., c : c + 1], 3, -1), (mean[c],) * 3)
      difference = result[..., c].astype(int) - alone[..., 0]
      self.assertLessEqual(abs(difference).max(), 1)  # OpenCV rounds by the number of channels

  def test_pads_with_the_mean_in_the_pictures_own_range(self):
    record = {'image': FIVE, 'label': np.zeros((20, 30), np.uint8)}
    padded = transforms.pad(record, (1, 2, 3, 4), (0, 0.1, 0.5, 0.9, 1))
    expected = np.rint(65535 * np.array([0, 0.1, 0.5, 0.9, 1]))
    np.testing.assert_array_equal(padded['image'][0, 0], expected)
    np.testing.assert_array_equal(padded['image'][1:-2, 3:-4], FIVE)
    self.assertEqual(padded['label'][0, 0], 255)


class ViewableTest(parameterized.TestCase):
  def test_rgb_of_8_bits_stays(self):
    self.assertIs(pictures.viewable(FOUR[..., :3]).base, FOUR)

  @parameterized.parameters((1, 1), (2, 1), (4, 3), (5, 3))
  def test_the_first_bands_are_stretched(self, channels, shown):
    ramp = np.arange(10000, 10400, dtype=np.uint16).reshape(20, 20)
    image = np.stack([ramp + 500 * c for c in range(channels)], -1)
    view = pictures.viewable(image)
    self.assertEqual((view.shape, view.dtype), ((20, 20, 3), np.uint8))
    self.assertEqual((view.min(), view.max()), (0, 255))
    np.testing.assert_array_equal(view[..., 0], view[..., 2])  # all bands are the same ramp
    self.assertTrue((np.diff(view[..., 0].ravel().astype(int)) >= 0).all())
    image[..., shown:] = 0
    np.testing.assert_array_equal(pictures.viewable(image), view)

  def test_one_colour_is_no_division_by_zero(self):
    self.assertFalse(pictures.viewable(np.full((4, 4, 5), 77, np.uint16)).any())


class FolderOfBandsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in ('images', 'masks', 'splits'):
      (self.root / 'data' / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
      label = rng.integers(0, 2, (18, 20), np.uint8)
      image = rng.integers(0, 4000, (18, 20, 5), np.uint16) + np.uint16(9000) * label[..., None]
      tifffile.imwrite(self.root / f'data/images/{i}.tif', image, **TOGETHER)
      Image.fromarray(label).save(self.root / f'data/masks/{i}.png')
    (self.root / 'data/classes.txt').write_text('background\nwater')
    (self.root / 'data/splits/train.txt').write_text('0\n1\n2')
    (self.root / 'data/splits/val.txt').write_text('3')
    self.config = tiny.config(
      data__name='folder',
      data__dir=str(self.root / 'data'),
      data__channels=5,
      data__bits=16,
      data__mean=(0.1,) * 5,
      data__std=(0.1,) * 5,
      data__photometric=0.0,
      data__batch_size=2,
      train__num_steps=2,
      eval__size_multiple=8,
    )

  @pytest.mark.slow
  def test_trains_evaluates_predicts_and_is_inspected(self):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    workdir, out = self.root / 'run', io.StringIO()
    with contextlib.redirect_stdout(out):
      train(settings.for_training(self.config, workdir), workdir)
      config = settings.for_inference(tiny.config(), {}, workdir)
      predict(config, workdir, [str(self.root / 'data/images')])
      inspect(self.config, workdir)
    scores = json.loads((workdir / 'eval/val.json').read_text())
    self.assertEqual((scores['step'], scores['num_images']), (2, 1))
    labels = sorted((workdir / 'predict/labels').iterdir())
    self.assertEqual([path.name for path in labels], ['0.png', '1.png', '2.png', '3.png'])
    self.assertEqual(Image.open(labels[0]).size, (20, 18))
    overlay = np.asarray(Image.open(workdir / 'predict/overlays/0.png'))
    self.assertEqual(overlay.shape, (18, 20, 3))
    self.assertIn('folder, train: 3 images', out.getvalue())

  def test_only_a_folder_has_such_pictures(self):
    self.config.data.name = 'shapes'
    with self.assertRaisesRegex(UserError, "data.channels is 5 .*'shapes' has 3 channels"):
      open_dataset(self.config.data, 'train', 0)

  def test_a_picture_of_another_size_than_its_mask(self):
    image = np.zeros((20, 18, 5), np.uint16)
    tifffile.imwrite(self.root / 'data/images/3.tif', image, **TOGETHER)
    with self.assertRaisesRegex(UserError, '3.tif has 20 x 18 .* 18 x 20; expected the same size'):
      open_dataset(self.config.data, 'val', 0)[0]

  def test_colours_of_bands_are_not_changed(self):
    self.config.data.photometric = 0.3
    with self.assertRaisesRegex(UserError, 'data.photometric is 0.3; expected 0'):
      settings.check(self.config)


if __name__ == '__main__':
  absltest.main()
