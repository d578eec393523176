import pickle
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
from absl import logging
from absl.testing import absltest, parameterized
from PIL import ExifTags, Image, ImageOps

from seg_jax.data import files
from seg_jax.data.label_map import LabelMap, read_label, value_counts
from seg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / 'shared' / 'data'
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = PICTURE[..., 0]

# What each EXIF orientation asks for, in the words of its specification.
UPRIGHT = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: np.rot90(a),
}


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def save(self, image, name: str, **options) -> Path:
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path

  def assert_user_error(self, function, *args, says: tuple) -> str:
    with self.assertRaises(UserError) as caught:
      function(*args)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    for part in says:
      self.assertIn(str(part), message)
    return message


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
  """A PNG of these chunks, with good checksums."""
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
    for kind, data in chunks
  )


def png_header(rows: int, columns: int, colour_type: int) -> tuple[bytes, bytes]:
  """The chunk that declares a picture of 8 bits; colour type 0 is grey, 2 is RGB."""
  size = columns.to_bytes(4, 'big') + rows.to_bytes(4, 'big')
  return b'IHDR', size + bytes([8, colour_type, 0, 0, 0])


def palette_image(indices: np.ndarray, colours: np.ndarray) -> Image.Image:
  image = Image.fromarray(indices)
  image.putpalette(colours.astype(np.uint8).tobytes())
  return image


class ReadImageTest(FilesTest):
  @parameterized.parameters('a.png', 'a.tif', 'a.bmp', 'a.ppm')
  def test_rgb_is_exact(self, name):
    path = self.save(PICTURE, name)
    np.testing.assert_array_equal(files.read_image(path), PICTURE)
    self.assertEqual(files.image_size(path), (20, 30))

  def test_webp_without_loss_is_exact(self):
    path = self.save(PICTURE, 'a.webp', lossless=True)
    np.testing.assert_array_equal(files.read_image(str(path)), PICTURE)

  def test_grey_is_the_same_in_all_channels(self):
    read = files.read_image(self.save(GREY, 'a.png'))
    np.testing.assert_array_equal(read, np.stack([GREY] * 3, axis=-1))

  def test_of_16_bits_the_upper_eight_are_kept(self):
    deep = GREY.astype(np.uint16) * 256 + 77
    for name in ('a.png', 'a.tif'):
      read = files.read_image(self.save(deep, name))
      np.testing.assert_array_equal(read, np.stack([GREY] * 3, axis=-1))
    path = str(self.folder / 'colour.png')
    cv2.imwrite(path, PICTURE[..., ::-1].astype(np.uint16) * 256 + 77)
    np.testing.assert_array_equal(files.read_image(path), PICTURE)

  def test_palette_becomes_its_colours(self):
    indices, colours = GREY % 7, RNG.integers(0, 256, (7, 3))
    read = files.read_image(self.save(palette_image(indices, colours), 'a.png'))
    np.testing.assert_array_equal(read, colours[indices])

  def test_one_bit_is_black_and_white(self):
    read = files.read_image(self.save(GREY > 99, 'a.png'))
    np.testing.assert_array_equal(read[..., 1], (GREY > 99) * 255)

  def test_alpha_is_dropped(self):
    alpha = np.concatenate([PICTURE, GREY[..., None]], axis=-1)
    np.testing.assert_array_equal(files.read_image(self.save(alpha, 'a.png')), PICTURE)
    grey = Image.fromarray(GREY).convert('LA')
    read = files.read_image(self.save(grey, 'b.png'))
    np.testing.assert_array_equal(read[..., 2], GREY)

  def test_cmyk_is_subtracted_from_white(self):
    inks = np.concatenate([255 - PICTURE, np.zeros_like(GREY)[..., None]], axis=-1)
    read = files.read_image(self.save(Image.fromarray(inks, mode='CMYK'), 'a.tif'))
    np.testing.assert_array_equal(read, PICTURE)

  def test_cmyk_and_grey_jpegs_are_converted_and_it_is_said_once_for_each(self):
    logging._log_counter_per_token.clear()
    flat = np.zeros((16, 24, 4), np.uint8)
    flat[:] = 200, 40, 90, 0  # inks
    flat[:, 12:, 3] = 128  # and half black
    grey = np.full((16, 24), 77, np.uint8)
    cmyk_path = self.save(Image.fromarray(flat, mode='CMYK'), 'cmyk.jpg', quality=95)
    grey_path = self.save(grey, 'grey.jpg')
    with self.assertLogs(logging.get_absl_logger(), 'WARNING') as told:
      for _ in range(2):
        read = files.read_image(grey_path)
        np.testing.assert_allclose(read, np.stack([grey] * 3, -1), atol=2)
        read = files.read_image(cmyk_path).astype(int)
        np.testing.assert_allclose(
          read[:, 2:10], np.broadcast_to([55, 215, 165], (16, 8, 3)), atol=4
        )
        half = np.array([55, 215, 165]) * 127 / 255
        np.testing.assert_allclose(read[:, 14:], np.broadcast_to(half, (16, 10, 3)), atol=4)
    self.assertLen(told.output, 2)
    self.assertIn(f'{grey_path} is grey', told.output[0])
    self.assertIn(f'{cmyk_path} is CMYK', told.output[1])

  def test_nothing_is_said_of_what_is_rgb_already(self):
    logging._log_counter_per_token.clear()
    with self.assertNoLogs(logging.get_absl_logger()):
      for name in ('a.jpg', 'a.png'):
        files.read_image(self.save(PICTURE, name))

  @parameterized.parameters(
    'Straße 7.png', 'Ä ö ü/ein Bild (1).jpg', '写真 #1.tif', "it's 100 %.webp"
  )
  def test_names_of_any_letters(self, name):
    path = self.save(PICTURE, name)
    with Image.open(path) as image:
      np.testing.assert_array_equal(files.read_image(path), np.asarray(image.convert('RGB')))
    self.assertEqual(list(files.files_by_stem(self.folder).values()), [path])
    path.write_bytes(b'')
    self.assert_user_error(files.read_image, path, says=(path,))

  def test_jpeg_is_what_another_decoder_makes_of_it(self):
    smooth = cv2.resize(PICTURE[:4, :5], (50, 40), interpolation=cv2.INTER_CUBIC)
    path = self.save(smooth, 'a.jpg')
    np.testing.assert_array_equal(files.read_image(path), cv2.imread(str(path))[..., ::-1])

  def test_floating_point_is_refused(self):
    path = self.save(GREY.astype(np.float32), 'a.tif')
    self.assert_user_error(files.read_image, path, says=(path, 'expected'))

  @parameterized.product(orientation=tuple(UPRIGHT), name=('a.png', 'a.webp', 'a.tif'))
  def test_exif_orientation_is_applied_to_pixels_and_size(self, orientation, name):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {'lossless': True} if name == 'a.webp' else {}
    path = self.save(PICTURE, name, exif=exif, **options)
    expected = UPRIGHT[orientation](PICTURE)
    np.testing.assert_array_equal(files.read_image(path), expected)
    self.assertEqual(files.image_size(path), expected.shape[:2])

  @parameterized.product(orientation=tuple(UPRIGHT), name=('a.png', 'a.jpg', 'a.webp'))
  def test_exif_orientation_is_what_pillows_own_function_makes_of_it(self, orientation, name):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = self.save(PICTURE, name, exif=exif)
    with Image.open(path) as image:
      expected = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    np.testing.assert_array_equal(files.read_image(path), expected)
    self.assertEqual(files.image_size(path), expected.shape[:2])
    self.assertEqual(files.image_orientation(path), orientation)
    np.testing.assert_array_equal(
      files.turn(PICTURE, orientation),
      np.asarray(ImageOps.exif_transpose(Image.open(self.save(PICTURE, 'exact.png', exif=exif)))),
    )

  def test_exif_orientation_of_a_mask(self):
    exif = Image.Exif()
    for orientation in UPRIGHT:
      exif[ExifTags.Base.Orientation] = orientation
      for mask in (GREY, GREY.astype(np.uint16) * 256, PICTURE):
        path = self.save(mask, 'a.png', exif=exif)
        np.testing.assert_array_equal(files.read_mask(path), UPRIGHT[orientation](mask))

  def test_exif_behind_the_pixels_is_read_nowhere(self):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for array in (GREY, GREY.astype(np.uint16) * 256, PICTURE):
      data = self.save(array, 'a.png', exif=exif).read_bytes()
      start = data.index(b'eXIf') - 4
      stop = start + 12 + int.from_bytes(data[start : start + 4])
      path = self.folder / 'late.png'
      path.write_bytes(data[:start] + data[stop:-12] + data[start:stop] + data[-12:])
      np.testing.assert_array_equal(files.read_mask(path), array)
      self.assertEqual(files.read_image(path).shape[:2], files.image_size(path))

  def test_exif_orientation_of_a_jpeg(self):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    plain, turned = self.save(PICTURE, 'a.jpg'), self.save(PICTURE, 'b.jpg', exif=exif)
    np.testing.assert_array_equal(files.read_image(turned), np.rot90(files.read_image(plain), -1))
    self.assertEqual(files.image_size(turned), (30, 20))


class EncodedTest(FilesTest):
  @parameterized.parameters('a.png', 'a.jpg', 'a.webp', 'a.tif', 'a.gif', 'a.bmp')
  def test_a_files_bytes_give_the_same_picture_as_its_path(self, name):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = self.save(PICTURE, name, **({} if name[-3:] in ('gif', 'bmp') else {'exif': exif}))
    encoded = files.Encoded(path.read_bytes(), 'train.record, picture 3')
    for function in (files.read_image, files.image_size, files.image_orientation):
      np.testing.assert_array_equal(function(encoded), function(path))

  def test_a_files_bytes_give_the_same_mask_as_its_path(self):
    rgba = np.dstack([PICTURE, GREY])
    label_map = LabelMap({i: i // 2 for i in range(256)})
    for mask in (GREY, GREY.astype(np.uint16) * 255, palette_image(GREY % 3, PICTURE[0]), rgba):
      path = self.save(mask, 'a.png')
      encoded = files.Encoded(path.read_bytes(), 'a')
      np.testing.assert_array_equal(files.read_mask(encoded), files.read_mask(path))
    np.testing.assert_array_equal(files.read_rgba(encoded), rgba)
    grey = files.Encoded(self.save(GREY, 'b.png').read_bytes(), 'b')
    np.testing.assert_array_equal(read_label(grey, label_map), GREY // 2)

  def test_what_is_wrong_with_them_is_told_with_their_name(self):
    whole = self.save(PICTURE, 'a.png').read_bytes()
    for data in (b'', b'hello', whole[: len(whole) // 2], whole[:-30] + whole[-29:]):
      encoded = files.Encoded(data, 'train.record, picture 3')
      for function in (files.read_image, files.read_mask):
        self.assert_user_error(function, encoded, says=('train.record, picture 3:', 'expected'))
    grey = files.Encoded(self.save(GREY, 'b.png').read_bytes(), 'mask 3')
    self.assert_user_error(read_label, grey, LabelMap({0: 0, 1: 1}), says=('mask 3:', 'value'))


class BombTest(FilesTest):
  """Files of a few bytes that would fill the memory."""

  @parameterized.parameters(0, 2)
  def test_a_header_that_declares_too_many_pixels_is_refused_unread(self, colour_type):
    path = self.folder / 'a.png'
    rows = zlib.compress(bytes(1000))
    path.write_bytes(
      png([png_header(60_000, 50_000, colour_type), (b'IDAT', rows), (b'IEND', b'')])
    )
    self.assertLess(path.stat().st_size, 200)
    for function in (files.read_image, files.read_mask, files.image_size, files.read_rgba):
      self.assert_user_error(
        function, path, says=(path, '60000 x 50000 pixels', 'more than 178,956,970')
      )

  def test_the_limit_is_a_number_of_pixels_and_just_below_it_a_picture_is_read(self):
    path = self.save(PICTURE, 'a.png')
    with mock.patch.object(files, 'MAX_PIXELS', 20 * 30):
      np.testing.assert_array_equal(files.read_image(path), PICTURE)
    with mock.patch.object(files, 'MAX_PIXELS', 20 * 30 - 1):
      self.assert_user_error(files.read_image, path, says=(path, '20 x 30', '599'))

  def test_text_that_unpacks_without_end_is_refused_or_passed_over(self):
    """In a process of its own, which tells the most memory that it has ever held."""
    packer = zlib.compressobj(9)
    packed = b''.join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    rows = zlib.compress((b'\0' + bytes(5 * 3)) * 4)
    paths = []
    for kind, start in ((b'zTXt', b'a\0\0'), (b'iTXt', b'a\0\1\0\0\0'), (b'iCCP', b'a\0\0')):
      for place in (1, 2):  # before and after the pixels
        chunks = [png_header(4, 5, 2), (b'IDAT', rows), (b'IEND', b'')]
        chunks.insert(place, (kind, start + packed))
        paths.append(self.folder / f'{kind.decode()} {place}.png')
        paths[-1].write_bytes(png(chunks))
    code = (
      'import sys\n'
      'from pathlib import Path\n'
      'from seg_jax.data import files\n'
      'from seg_jax.errors import UserError\n'
      'status = Path("/proc/self/status")\n'  # elsewhere than in Linux nothing is measured
      'def held(): return int(status.read_text().split("VmHWM:")[1].split()[0]) >> 10\n'
      'before = held() if status.exists() else 0\n'
      'for path in sys.argv[1:]:\n'
      '  for read in (files.read_image, files.read_mask):\n'
      '    try: print(read(path).tolist() == [[[0] * 3] * 5] * 4)\n'
      '    except UserError as error: print(str(error).startswith(path))\n'
      'print(held() - before if status.exists() else 0)'
    )
    told = subprocess.run(
      [sys.executable, '-c', code, *map(str, paths)], cwd=ROOT, capture_output=True, text=True
    )
    *right, memory = told.stdout.splitlines()
    self.assertEqual(right, ['True'] * 2 * len(paths), told.stderr)
    self.assertLess(int(memory), 100)  # MiB

  @parameterized.product(quality=(40, 95), subsampling=(0, 1, 2), progressive=(False, True))
  def test_any_jpeg_is_what_pillow_makes_of_it(self, quality, subsampling, progressive):
    smooth = cv2.resize(PICTURE[:4, :5], (53, 41), interpolation=cv2.INTER_CUBIC)
    options = {'quality': quality, 'subsampling': subsampling, 'progressive': progressive}
    path = self.save(smooth, 'a.jpg', **options)
    np.testing.assert_array_equal(files.read_image(path), Image.open(path))

  def test_a_jpeg_with_foreign_bytes_inside_is_read_as_pillow_does(self):
    """Such as cameras write them: libjpeg warns of it, and goes on."""
    smooth = cv2.resize(PICTURE[:4, :5], (50, 40), interpolation=cv2.INTER_CUBIC)
    path = self.save(smooth, 'a.jpg')
    expected = np.asarray(Image.open(path))
    path.write_bytes(path.read_bytes().replace(b'\xff\xc4', b'\x00\x00\xff\xc4', 1))
    np.testing.assert_array_equal(files.read_image(path), expected)


class DamagedFileTest(FilesTest):
  @parameterized.product(
    name=('a.png', 'a.jpg', 'a.webp', 'a.tif', 'a.bmp', 'a.gif'), kept=(0.0, 0.02, 0.5, 0.97)
  )
  def test_a_truncated_picture_is_refused(self, name, kept):
    path = self.save(PICTURE, name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    self.assert_user_error(files.read_image, path, says=(path,))

  @parameterized.product(kept=(0.0, 0.02, 0.5, 0.97), palette=(False, True))
  def test_a_truncated_mask_is_refused(self, kept, palette):
    mask = palette_image(GREY % 3, PICTURE[0, :3]) if palette else GREY % 3
    path = self.save(mask, 'a.png')
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    self.assert_user_error(read_label, path, LabelMap({0: 0, 1: 1, 2: 2}), says=(path,))

  @parameterized.parameters(
    ('rgb.png', PICTURE, files.read_image),
    ('grey.png', GREY, files.read_image),
    ('mask.png', GREY // 128, files.read_mask),
    ('colours.png', PICTURE, files.read_mask),
  )
  def test_a_changed_byte_in_a_png_never_changes_a_pixel_unnoticed(self, name, pixels, read):
    path = self.save(pixels, name)
    whole = path.read_bytes()
    stacked = np.stack([pixels] * 3, axis=-1)
    refused = 0
    for position in np.linspace(8, len(whole) - 1, 40).astype(int):
      damaged = bytearray(whole)
      damaged[position] ^= 0x15
      path.write_bytes(damaged)
      try:
        image = read(path)
        np.testing.assert_array_equal(image, pixels if image.ndim == pixels.ndim else stacked)
      except UserError:
        refused += 1
    self.assertGreater(refused, 30)

  def test_what_is_no_picture_is_refused(self):
    path = self.folder / 'a.png'
    for function in (files.read_image, files.image_size, files.read_mask):
      self.assert_user_error(function, path, says=(path, 'no such file'))
    path.write_text('hello')
    for function in (files.read_image, files.image_size, files.read_mask):
      self.assert_user_error(function, path, says=(path,))
    self.assert_user_error(files.read_image, self.folder, says=(self.folder,))


class ReadLabelTest(FilesTest):
  def test_values_are_mapped_as_the_table_says(self):
    table = {3: 0, 7: 1, 200: 253, 0: 255, 255: 2}
    raw = RNG.choice(list(table), (20, 30)).astype(np.uint8)
    expected = [[table[value] for value in row] for row in raw.tolist()]
    label = read_label(self.save(raw, 'a.png'), LabelMap(table))
    self.assertEqual(label.dtype, np.uint8)
    np.testing.assert_array_equal(label, expected)

  @parameterized.parameters('a.png', 'a.tif')
  def test_values_of_16_bits(self, name):
    table = {0: 255, 300: 0, 65535: 1}
    raw = RNG.choice(list(table), (20, 30)).astype(np.uint16)
    label = read_label(self.save(raw, name), LabelMap(table))
    np.testing.assert_array_equal(label, np.vectorize(table.get)(raw))

  @parameterized.parameters('a.png', 'a.tif')
  def test_raw_values_of_16_bits_are_whole(self, name):
    raw = RNG.integers(0, 65536, (20, 30), np.uint16)
    mask = files.read_mask(self.save(raw, name))
    self.assertEqual(mask.dtype, np.uint16)
    np.testing.assert_array_equal(mask, raw)

  def test_all_four_channels_are_kept_where_each_means_something(self):
    rgba = np.dstack([PICTURE, GREY])
    rgba[:3] = 0  # nothing is premultiplied or cleared where alpha is 0
    rgba[:3, :, 0] = 7
    path = self.save(rgba, 'a.png')
    np.testing.assert_array_equal(files.read_rgba(path), rgba)
    np.testing.assert_array_equal(files.read_mask(path), rgba[..., :3])
    for other in (PICTURE, GREY):
      path = self.save(other, 'b.png')
      self.assert_user_error(files.read_rgba, path, says=(path, 'expected RGBA'))
    whole = self.save(rgba, 'c.png').read_bytes()
    path.write_bytes(whole[:-40])
    self.assert_user_error(files.read_rgba, path, says=(path,))

  def test_of_a_palette_the_index_counts_never_the_colour(self):
    indices = GREY % 3
    colours = np.array([(1, 1, 1), (2, 2, 2), (0, 0, 0)])
    path = self.save(palette_image(indices, colours), 'a.png')
    label = read_label(path, LabelMap({0: 0, 1: 1, 2: 2}))
    np.testing.assert_array_equal(label, indices)

  @parameterized.product(bits=(2, 4, 8), transparency=(None, 1))
  def test_indices_of_a_palette_of_any_depth_with_or_without_transparency(self, bits, transparency):
    options = {} if transparency is None else {'transparency': transparency}
    path = self.save(palette_image(GREY % 3, PICTURE[0]), 'a.png', bits=bits, **options)
    np.testing.assert_array_equal(files.read_mask(path), GREY % 3)

  def test_few_bits_of_grey_are_read_as_any_viewer_shows_them(self):
    path = self.folder / 'a.png'
    rows = np.packbits(np.array([[0, 0, 0, 1, 1, 0, 1, 1]], np.uint8))  # 0, 1, 2, 3 of two bits
    header = struct.pack('>IIBBBBB', 4, 1, 2, 0, 0, 0, 0)
    chunks = ((b'IHDR', header), (b'IDAT', zlib.compress(b'\0' + rows.tobytes())), (b'IEND', b''))
    path.write_bytes(
      b'\x89PNG\r\n\x1a\n'
      + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
      )
    )
    np.testing.assert_array_equal(files.read_mask(path), [[0, 85, 170, 255]])

  def test_one_bit_is_0_and_255(self):
    path = self.save(GREY > 99, 'a.png')
    label = read_label(path, LabelMap({0: 0, 255: 1}))
    np.testing.assert_array_equal(label, GREY > 99)

  @parameterized.parameters(3, 4)
  def test_colours_are_mapped_as_the_table_says(self, channels):
    table = {(0, 0, 1): 0, (0, 1, 0): 1, (1, 0, 0): 255, (255, 255, 255): 2}
    codes = RNG.integers(0, 4, (20, 30))
    raw = np.array([*table], np.uint8)[codes]
    raw = np.concatenate([raw, GREY[..., None]], axis=-1)[..., :channels]
    label = read_label(self.save(raw, 'a.png'), LabelMap(table))
    np.testing.assert_array_equal(label, np.array([*table.values()])[codes])

  def test_a_value_that_is_not_in_the_table(self):
    raw = np.zeros((20, 30), np.uint8)
    raw[0, :7], raw[1, :2] = 12, 13
    path = self.save(raw, 'a.png')
    label_map = LabelMap({**{i: i for i in range(12)}, 255: 255})
    self.assert_user_error(
      read_label,
      path,
      label_map,
      says=(path, 'value 12 (7 pixels), value 13 (2 pixels)', 'expected 0 to 11 or 255'),
    )

  def test_a_colour_that_is_not_in_the_table(self):
    raw = np.zeros((20, 30, 3), np.uint8)
    raw[0, 0] = 60, 40, 222
    path = self.save(raw, 'a.png')
    label_map = LabelMap({(0, 0, 0): 0, (0, 0, 192): 1})
    self.assert_user_error(
      read_label,
      path,
      label_map,
      says=(path, 'colour 60,40,222 (1 pixel)', 'expected 0,0,0 or 0,0,192'),
    )

  def test_many_unknown_values_are_counted_not_listed(self):
    path = self.save(np.arange(100, dtype=np.uint8)[None], 'a.png')
    message = self.assert_user_error(
      read_label, path, LabelMap({0: 0, 1: 1}), says=('94 more values',)
    )
    self.assertLess(len(message), 300)

  def test_raw_values_and_colours_are_counted_as_they_stand_in_the_file(self):
    values = np.array([[0, 3, 3], [65535, 3, 0]], np.uint16)
    self.assertEqual(value_counts(values), {'0': 2, '3': 3, '65535': 1})
    colours = np.array([[[255, 0, 1], [255, 0, 1]], [[0, 0, 0], [0, 9, 0]]], np.uint8)
    self.assertEqual(value_counts(colours), {'0,0,0': 1, '0,9,0': 1, '255,0,1': 2})

  def test_jpeg_is_refused(self):
    path = self.save(GREY, 'a.jpg')
    self.assert_user_error(read_label, path, LabelMap({0: 0, 1: 1}), says=(path, 'JPEG', 'PNG'))
    renamed = path.rename(self.folder / 'b.png')
    self.assert_user_error(read_label, renamed, LabelMap({0: 0}), says=('JPEG',))

  def test_colours_where_values_are_expected_and_the_other_way_round(self):
    values, colours = LabelMap({0: 0}), LabelMap({(0, 0, 0): 0})
    path = self.save(PICTURE, 'a.png')
    self.assert_user_error(read_label, path, values, says=(path, 'RGB', 'classes.txt'))
    for mask in (GREY, palette_image(GREY % 3, PICTURE[0])):
      path = self.save(mask, 'b.png')
      self.assert_user_error(read_label, path, colours, says=(path, 'RGB', 'classes.txt'))

  def test_only_0_and_255_is_refused_where_nobody_said_what_255_is(self):
    told = LabelMap({0: 0, 1: 1, 255: 255})
    assumed = LabelMap(told.classes, ignore_is_assumed=True)
    mask = np.zeros((20, 30), np.uint8)
    read_label(self.save(mask, 'empty.png'), assumed)
    mask[3:9] = 255
    path = self.save(mask, 'a.png')
    self.assert_user_error(read_label, path, assumed, says=(path, 'NAME, 255', 'ignore, 255'))
    self.assertEqual(np.unique(read_label(path, told)).tolist(), [0, 255])
    mask[0, 0] = 1
    read_label(self.save(mask, 'b.png'), assumed)

  def test_a_label_map_survives_pickling(self):
    label_map = LabelMap({(0, 0, 0): 0, (9, 9, 9): 1})
    path = self.save(np.full((2, 2, 3), 9, np.uint8), 'a.png')
    read_label(path, label_map)
    again = pickle.dumps(label_map)
    self.assertLess(len(again), 1000)
    self.assertEqual(read_label(path, pickle.loads(again)).tolist(), [[1, 1], [1, 1]])


class PairingTest(FilesTest):
  def touch(self, *names):
    for name in names:
      (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
      (self.folder / name).touch()

  def pair(self, *endings):
    images = files.files_by_stem(self.folder / 'i', *endings[:1])
    masks = files.match_stems(images, self.folder / 'm', *endings[1:])
    pairs = zip(images.values(), masks, strict=True)
    return [tuple(path.relative_to(self.folder).as_posix() for path in pair) for pair in pairs]

  def test_pictures_and_masks_of_one_stem_are_paired_in_order(self):
    self.touch('i/b.jpg', 'i/a.v1.PNG', 'i/.b.png', 'i/.old/c.png', 'i/notes.txt')
    self.touch('m/a.v1.png', 'm/b.tif', 'm/other.png')
    self.assertEqual(self.pair(), [('i/a.v1.PNG', 'm/a.v1.png'), ('i/b.jpg', 'm/b.tif')])

  def test_endings_and_folders_are_part_of_a_layout_such_as_that_of_cityscapes(self):
    self.touch('i/bonn/1_photo.png', 'i/ulm/1_photo.png')
    self.touch('m/bonn/1_ids.png', 'm/bonn/1_colour.png', 'm/ulm/1_ids.png', 'm/ulm/1_colour.png')
    self.assertEqual(
      self.pair('_photo', '_ids'),
      [('i/bonn/1_photo.png', 'm/bonn/1_ids.png'), ('i/ulm/1_photo.png', 'm/ulm/1_ids.png')],
    )

  def test_a_picture_without_mask(self):
    self.touch('i/a.jpg', 'i/b.jpg', 'm/a_L.png')
    self.assert_user_error(
      self.pair, '', '_L', says=(self.folder / 'i/b.jpg', self.folder / 'm/b_L.png')
    )

  def test_two_pictures_of_one_stem(self):
    self.touch('i/a.jpg', 'i/a.png', 'm/a.png')
    self.assert_user_error(self.pair, says=(self.folder / 'i/a.jpg', self.folder / 'i/a.png'))

  def test_a_folder_that_is_missing_or_empty(self):
    self.assert_user_error(self.pair, says=(self.folder / 'i', 'no such directory'))
    self.touch('i/readme.txt')
    self.assert_user_error(self.pair, says=(self.folder / 'i', 'no pictures'))


class LinksTest(FilesTest):
  def below(self):
    return [
      p.relative_to(self.folder / 'i').as_posix() for p in files.pictures_below(self.folder / 'i')
    ]

  def test_files_and_folders_that_lie_elsewhere_are_read(self):
    outside = self.save(PICTURE, 'elsewhere/deep/x.png').parent.parent
    inside = self.save(255 - PICTURE, 'i/own.png').parent
    (inside / 'file.png').symlink_to(outside / 'deep/x.png')
    (inside / 'folder').symlink_to(outside)
    self.assertEqual(self.below(), ['file.png', 'folder/deep/x.png', 'own.png'])
    stems = files.files_by_stem(inside)
    self.assertEqual(list(stems), ['file', 'folder/deep/x', 'own'])
    for stem in ('file', 'folder/deep/x'):
      np.testing.assert_array_equal(files.read_image(stems[stem]), PICTURE)

  def test_a_circle_of_links_ends(self):
    self.save(PICTURE, 'i/a/x.png')
    self.save(PICTURE, 'i/b/y.png')
    (self.folder / 'i/a/up').symlink_to(self.folder / 'i')
    (self.folder / 'i/a/self').symlink_to(self.folder / 'i/a')
    self.assertEqual(self.below(), ['a/x.png', 'b/y.png'])
    (self.folder / 'i/a/other').symlink_to(self.folder / 'i/b')
    (self.folder / 'i/b/other').symlink_to(self.folder / 'i/a')
    self.assertEqual(self.below(), ['a/other/y.png', 'a/x.png', 'b/other/x.png', 'b/y.png'])

  def test_two_links_to_one_folder_are_two_folders(self):
    self.save(PICTURE, 'elsewhere/x.png')
    (self.folder / 'i').mkdir()
    for name in ('left', 'right'):
      (self.folder / 'i' / name).symlink_to(self.folder / 'elsewhere')
    self.assertEqual(self.below(), ['left/x.png', 'right/x.png'])

  def test_a_link_to_nothing_is_told_when_it_is_read(self):
    (self.folder / 'i').mkdir()
    path = self.folder / 'i/a.png'
    path.symlink_to(self.folder / 'gone.png')
    (self.folder / 'i/b.png').symlink_to(self.folder / 'i/b.png')
    self.assertEqual(self.below(), ['a.png', 'b.png'])
    self.assert_user_error(files.read_image, path, says=(path, 'no such file'))
    self.assert_user_error(files.read_image, self.folder / 'i/b.png', says=('b.png',))


class RealMasksTest(absltest.TestCase):
  def test_palette_masks_of_pascal_voc_hold_their_classes(self):
    folder = SHARED / 'pascal_voc/VOCdevkit/VOC2012'
    if not folder.is_dir():
      self.skipTest(f'{folder} is not there')
    label_map = LabelMap({**{i: i for i in range(21)}, 255: 255})
    # To be seen on the picture: aeroplanes (1) and persons (15).
    label = read_label(folder / 'SegmentationClass/2007_000032.png', label_map)
    self.assertEqual(np.unique(label).tolist(), [0, 1, 15, 255])
    self.assertEqual(label.shape, files.image_size(folder / 'JPEGImages/2007_000032.jpg'))


if __name__ == '__main__':
  absltest.main()
