"""Pictures and masks on disk: reading them, pairing them, and every check on the way.

Whatever is wrong with a file is a `UserError` that names it.
"""

import contextlib
import dataclasses
import io
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import tensorstore
from absl import logging
from PIL import ExifTags, Image

from seg_jax.errors import UserError

# What is wrong with a file is told here, in one line, and not by OpenCV in one of its own.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
Image.MAX_IMAGE_PIXELS = None  # `_opened` has the limit, and no warning below it

SUFFIXES = {'.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}

MAX_PIXELS = 178_956_970  # of a picture, 13377 x 13377; more is refused, unread

_PNG_END = b'IEND\xaeB`\x82'

_UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
  2: lambda array: array[:, ::-1],
  3: lambda array: array[::-1, ::-1],
  4: lambda array: array[::-1],
  5: lambda array: array.swapaxes(0, 1),
  6: lambda array: np.rot90(array, -1),
  7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
  8: np.rot90,
}


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A picture file's bytes, for the functions below that take a path, and what to call it."""

  data: bytes
  name: str

  def __str__(self) -> str:
    return self.name


@dataclasses.dataclass(frozen=True)
class Page:
  """One of the pictures that a TIFF file holds, from 0, for the functions that take a path."""

  path: Path
  number: int

  def __str__(self) -> str:
    return f'{self.path}, page {self.number}'


File = str | Path | Encoded | Page


def read_image(path: File) -> np.ndarray:
  """uint8 [H, W, 3], RGB and upright, from any usual format, truecolour, palette, grey or CMYK.

  An alpha channel is dropped, of 16 bits the upper eight are kept. A file that is truncated or
  damaged, as far as its format can tell, is a `UserError`, never a half-decoded picture.
  """
  with _opened(path) as image:
    orientation = _orientation(image)  # as `image_size` sees it: before the pixels, or nowhere
    if image.mode == 'RGB' and (array := _decoded(path, image)) is not None:
      return turn(array, orientation)
    if image.mode == 'CMYK':
      logging.log_first_n(logging.WARNING, '%s is CMYK: all such are converted to RGB', 1, path)
    elif image.mode in ('1', 'L', 'LA') or image.mode.startswith('I;16'):
      logging.log_first_n(logging.WARNING, '%s is grey: all such are converted to RGB', 1, path)
    _check_checksums(path, image)
    if image.mode.startswith('I;16'):
      array = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    elif image.mode in ('I', 'F'):
      raise OSError(f'pixels of mode {image.mode}; expected 8 or 16 bits a channel')
    else:
      array = np.array(image.convert('RGB'))
    return turn(array, orientation)


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
  """`array` [H, W, ...] as stored, upright, by EXIF's number for how it is stored."""
  upright = _UPRIGHT.get(orientation)
  return array if upright is None else np.ascontiguousarray(upright(array))


def image_orientation(path: File) -> int:
  """EXIF's number for how the picture is stored: 1 is upright, 5 and above on its side."""
  if isinstance(path, Path) and path.suffix.lower() in ('.tif', '.tiff'):
    return 1  # turned by its decoder; and it may have more bands than Pillow knows
  with _opened(path) as image:
    return _orientation(image)


def image_storage(path: File) -> tuple[str, int]:
  """Pillow's mode of the stored picture (`RGB`, `L` for grey, ...), and EXIF's orientation."""
  with _opened(path) as image:
    return image.mode, _orientation(image)


def image_size(path: File) -> tuple[int, int]:
  """Rows and columns of what `read_image` returns, from the file's header alone."""
  with _opened(path) as image:
    columns, rows = image.size
    return (columns, rows) if _orientation(image) >= 5 else (rows, columns)


def num_pages(path: File) -> int:
  """The number of pictures that a file holds."""
  with _opened(path) as image:
    return getattr(image, 'n_frames', 1)


def read_mask(path: File) -> np.ndarray:
  """The raw values of a mask, [H, W] uint8 or uint16, or its colours, uint8 [H, W, 3].

  Of a palette image the indices are the values. Fewer than eight bits of grey are read as any
  viewer shows them: a one-bit mask holds 0 and 255. An alpha channel is dropped.
  """
  with _opened(path) as image:
    orientation = _orientation(image)
    if image.format in ('JPEG', 'MPO'):
      raise UserError(
        f'{path}: a JPEG mask; its compression has blurred the classes, expected a PNG made from'
        ' the original annotation'
      )
    if image.mode in ('L', 'P', 'RGB') and (array := _decoded(path, image)) is not None:
      return turn(array, orientation)
    _check_checksums(path, image)
    if image.mode in ('L', 'P') or image.mode.startswith('I;16'):
      array = np.array(image)
    elif image.mode in ('1', 'LA'):
      array = np.array(image.convert('L'))
    elif image.mode in ('RGB', 'RGBA'):
      array = np.array(image.convert('RGB'))
    else:
      raise OSError(f'pixels of mode {image.mode}; expected grey, palette, RGB or RGBA')
    return turn(array, orientation)


def read_values(path: File) -> np.ndarray:
  """`read_mask` of a file that is no label: ids or depth, [H, W], where colours have no meaning."""
  values = read_mask(path)
  if values.ndim == 3:
    raise UserError(f'{path}: RGB colours; expected one channel of values')
  return values


def read_rgba(path: File) -> np.ndarray:
  """uint8 [H, W, 4] of a PNG with four channels, where each of them means something."""
  with _opened(path) as image:
    if image.mode != 'RGBA':
      raise OSError(f'pixels of mode {image.mode}; expected RGBA')
    _check_checksums(path, image)
    return np.array(image)


@contextlib.contextmanager
def _opened(path: File) -> Iterator[Image.Image]:
  """The open file; whatever is raised on its way is told as the file's fault."""
  try:
    with Image.open(_readable(path)) as image:
      if isinstance(path, Page):
        image.seek(path.number)
      columns, rows = image.size
      if rows * columns > MAX_PIXELS:
        raise OSError(f'{rows} x {columns} pixels, more than {MAX_PIXELS:,}')
      yield image
  except (UserError, MemoryError):
    raise
  except FileNotFoundError:
    raise UserError(f'{path}: no such file') from None
  except Exception as error:  # Pillow's decoders raise anything, from OSError to struct.error
    raise UserError(f'{path}: cannot be read ({error}); expected a whole picture file') from error


def _readable(path: File):
  if isinstance(path, Page):
    return path.path
  return io.BytesIO(path.data) if isinstance(path, Encoded) else path


def _bytes(path: File) -> bytes:
  return path.data if isinstance(path, Encoded) else Path(path).read_bytes()


def _decoded(path: File, image: Image.Image) -> np.ndarray | None:
  """The stored pixels, [H, W, 3] or [H, W], of a whole PNG or JPEG of 8 bits; None of any other.

  TensorStore's decoders give the pixels that Pillow's do, in half the time (PNG; a fifth less for
  JPEG), and refuse whatever is damaged. Pillow, with all its checks, has the last word on that.
  """
  if image.format not in ('PNG', 'JPEG'):
    return None
  data = _bytes(path)
  if image.format == 'PNG' and (data[24] != 8 or not data.endswith(_PNG_END)):  # bits a sample
    return None
  memory = tensorstore.Context()
  tensorstore.KvStore.open('memory://', context=memory).result()['file'] = data
  spec = {'driver': image.format.lower(), 'kvstore': 'memory://file'}
  try:
    array = tensorstore.open(spec, context=memory).result().read().result()
  except ValueError:
    return None
  return array[..., 0] if array.shape[-1] == 1 else array


def _check_checksums(path: File, image: Image.Image) -> None:
  """Pillow decodes a PNG without; a fifth of all damaged masks would decode to other classes."""
  if image.format == 'PNG':
    with Image.open(_readable(path)) as checked:
      checked.verify()


def _orientation(image: Image.Image) -> int:
  if image.format == 'TIFF':
    return 1  # Pillow turns these by itself
  # The base class's, because PngImageFile's decodes the whole picture.
  return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def pictures_below(folder: Path) -> list[Path]:
  """The pictures at any depth below `folder`, sorted; hidden files and folders are passed over.

  Links are followed, also to folders elsewhere, but not in a circle.
  """
  found, above = [], {str(folder): {os.path.realpath(folder)}}  # of each folder, those it lies in
  for parent, folders, names in os.walk(folder, followlinks=True):
    way = above.pop(parent)
    inner = {
      name: os.path.realpath(os.path.join(parent, name))
      for name in folders
      if not name.startswith('.')
    }
    folders[:] = [name for name, real in inner.items() if real not in way]
    above |= {os.path.join(parent, name): way | {inner[name]} for name in folders}
    found += [Path(parent, name) for name in names if not name.startswith('.')]
  return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def stem_of(name: str) -> str:
  """A file's path without its suffix, the same however macOS has written its umlauts."""
  return unicodedata.normalize('NFC', os.path.splitext(name)[0])


def files_by_stem(folder: Path, ending: str = '') -> dict[str, Path]:
  """{stem: file} of the pictures below `folder`.

  The stem is the path below `folder` without suffix and without `ending`: Cityscapes' pictures with
  the ending `_leftImg8bit` and its masks with `_gtFine_labelIds` have the same stems.
  """
  if not folder.is_dir():
    raise UserError(f'{folder}: no such directory')
  files, there = {}, pictures_below(folder)
  for path in there:
    name = stem_of(path.relative_to(folder).as_posix())
    if not name.endswith(ending):
      continue
    stem = name.removesuffix(ending)
    if stem in files:
      raise UserError(f'{path}: same stem as {files[stem]}; expected one file for each stem')
    files[stem] = path
  if not files:
    found = f'none of its pictures, such as {there[0].name}, fits' if there else 'holds no pictures'
    raise UserError(f'{folder}: {found}; expected files such as NAME{ending}.png')
  return files


def match_stems(
  images: Mapping[str, Path], folder: Path, ending: str = '', what: str = 'mask'
) -> list[Path]:
  """For each picture its file in `folder`; files of no picture are left aside, as splits need."""
  files = files_by_stem(folder, ending)
  missing = [stem for stem in images if stem not in files]
  if missing:
    stem, *others = missing
    more = f'; so have {len(others)} more: {", ".join(others[:10])}' if others else ''
    suffix = next(iter(files.values())).suffix
    raise UserError(
      f'{images[stem]}: has no {what}; expected {folder / (stem + ending)}{suffix}{more}'
    )
  return [files[stem] for stem in images]
