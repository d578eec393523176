"""Pictures and masks on disk: reading them, pairing them, and every check on the way.

Whatever is wrong with a file is a `UserError` that names it.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from seg_jax import IGNORE
from seg_jax.errors import UserError

# What is wrong with a file is told here, in one line, and not by OpenCV in one of its own.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

SUFFIXES = {'.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}

Colour = tuple[int, int, int]

_UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path) -> np.ndarray:
  """uint8 [H, W, 3], RGB and upright, from any usual format, truecolour, palette, grey or CMYK.

  An alpha channel is dropped, of 16 bits the upper eight are kept. A file that is truncated or
  damaged, as far as its format can tell, is a `UserError`, never a half-decoded picture.
  """
  with _opened(path) as image:
    if image.format == 'PNG' and image.mode == 'RGB' and _orientation(image) == 1:
      # A third faster than Pillow to the same pixels, and strict: None if any checksum is wrong.
      decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
      if decoded is None:
        raise OSError('truncated or damaged PNG')
      return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    image = _decoded(path, image)
    if image.mode.startswith('I;16'):
      return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ('I', 'F'):
      raise OSError(f'pixels of mode {image.mode}; expected 8 or 16 bits a channel')
    return np.array(image.convert('RGB'))


def image_size(path: str | Path) -> tuple[int, int]:
  """Rows and columns of what `read_image` returns, from the file's header alone."""
  with _opened(path) as image:
    columns, rows = image.size
    return (columns, rows) if _orientation(image) >= 5 else (rows, columns)


@dataclasses.dataclass(frozen=True)
class LabelMap:
  """What a mask's pixels mean: grey value, palette index or (R, G, B) -> class, or 255 = ignore.

  Keys are all numbers (0 to 65535) or all colours; what is not a key is an error in the mask.
  Classes are below 254.
  """

  classes: Mapping[int | Colour, int]
  # True: nobody said that 255 is "ignore". A mask of nothing but 0 and 255 is then refused, for its
  # 255 is most often a class.
  ignore_is_assumed: bool = False

  @property
  def by_colour(self) -> bool:
    return isinstance(next(iter(self.classes)), tuple)


def read_label(path: str | Path, label_map: LabelMap) -> np.ndarray:
  """uint8 [H, W] of classes and 255 = ignore.

  Raises a `UserError` that names the file if it cannot be read, is a JPEG, is coloured where values
  are expected or the other way round, or holds what `label_map` does not know.
  """
  raw = read_mask(path)
  coloured = raw.ndim == 3
  if coloured and not label_map.by_colour:
    raise UserError(
      f'{path}: a mask in RGB colours; expected one channel of class values'
      " (or, in a dataset of your own, a line 'NAME, R, G, B' for each class in classes.txt)"
    )
  if label_map.by_colour and not coloured:
    raise UserError(
      f'{path}: a mask of one channel, grey or palette; expected RGB, as the classes are given by'
      " colour (or, in a dataset of your own, a line 'NAME, VALUE' for each class in classes.txt)"
    )
  codes = _colour_codes(raw) if coloured else raw
  label = np.take(_lookup_table(tuple(label_map.classes.items())), codes)
  unknown = label == _UNKNOWN
  if unknown.any():
    raise UserError(
      f'{path}: {describe(raw[unknown])} not known; expected {_listing(label_map.classes)}'
    )
  if label_map.ignore_is_assumed and (label == IGNORE).any() and np.isin(label, (0, IGNORE)).all():
    raise UserError(
      f'{path}: a mask of the values 0 and 255 only; is 255 a class or to be ignored? Say so in'
      " classes.txt: either a value for each class ('NAME, 0' and 'NAME, 255'), or one more line"
      " 'ignore, 255'"
    )
  return label


def read_mask(path: str | Path) -> np.ndarray:
  """The raw values of a mask, [H, W] uint8 or uint16, or its colours, uint8 [H, W, 3].

  Of a palette image the indices are the values. Fewer than eight bits of grey are read as any
  viewer shows them: a one-bit mask holds 0 and 255.
  """
  with _opened(path) as image:
    if image.format in ('JPEG', 'MPO'):
      raise UserError(
        f'{path}: a JPEG mask; its compression has blurred the classes, expected a PNG made from'
        ' the original annotation'
      )
    image = _decoded(path, image)
    if image.mode in ('L', 'P') or image.mode.startswith('I;16'):
      return np.array(image)
    if image.mode in ('1', 'LA'):
      return np.array(image.convert('L'))
    if image.mode in ('RGB', 'RGBA'):
      return np.array(image.convert('RGB'))
    raise OSError(f'pixels of mode {image.mode}; expected grey, palette, RGB or RGBA')


def describe(pixels: np.ndarray, limit: int = 4) -> str:
  """The commonest of raw `pixels` [N] or [N, 3], as `value 7 (12 pixels), value 9 (1 pixel)`."""
  kind = 'value' if pixels.ndim == 1 else 'colour'
  counts = value_counts(pixels[None])
  commonest = sorted(counts, key=lambda text: -counts[text])
  texts = [
    f'{kind} {text} ({counts[text]} pixel{"s" if counts[text] > 1 else ""})'
    for text in commonest[:limit]
  ]
  more = len(counts) - limit
  return ', '.join(texts) + (
    f' and {more} more {kind}{"s" if more > 1 else ""}' if more > 0 else ''
  )


def value_counts(mask: np.ndarray) -> dict[str, int]:
  """The pixels of each value of what `read_mask` gives, or of each colour as `R,G,B`."""
  values, counts = np.unique(_colour_codes(mask) if mask.ndim == 3 else mask, return_counts=True)
  if mask.ndim == 3:
    values = np.stack([values >> 16, values >> 8 & 255, values & 255], -1)
  return dict(zip(map(_text, values), counts.tolist(), strict=True))


_UNKNOWN = 254


@functools.lru_cache(maxsize=8)
def _lookup_table(items: tuple) -> np.ndarray:
  """uint8 table from each 16-bit value, or 24-bit colour code, to its class."""
  keys = np.array([key for key, _ in items])
  coloured = keys.ndim == 2
  table = np.full(1 << 24 if coloured else 1 << 16, _UNKNOWN, np.uint8)
  table[_colour_codes(keys) if coloured else keys] = [value for _, value in items]
  return table


def _colour_codes(colours: np.ndarray) -> np.ndarray:
  colours = colours.astype(np.int32)
  return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def _text(value) -> str:
  return ','.join(map(str, np.atleast_1d(value)))


def _listing(keys: Mapping, limit: int = 12) -> str:
  known = sorted(keys)
  texts = [_text(key) for key in known]
  if len(known) > 2 and not isinstance(known[0], tuple) and known[-2] - known[0] == len(known) - 2:
    texts = [f'{known[0]} to {known[-2]}', texts[-1]]
  return ' or '.join(texts[:limit]) + (' ...' if len(texts) > limit else '')


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
  """The open file; whatever is raised on its way is told as the file's fault."""
  try:
    with Image.open(path) as image:
      yield image
  except (UserError, MemoryError):
    raise
  except FileNotFoundError:
    raise UserError(f'{path}: no such file') from None
  except Exception as error:  # Pillow's decoders raise anything, from OSError to struct.error
    raise UserError(f'{path}: cannot be read ({error}); expected a whole picture file') from error


def _decoded(path: str | Path, image: Image.Image) -> Image.Image:
  if image.format == 'PNG':  # without this a fifth of all damaged masks decode to other classes
    with Image.open(path) as checked:
      checked.verify()
  turn = _UPRIGHT.get(_orientation(image))
  return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
  if image.format == 'TIFF':
    return 1  # Pillow turns these by itself
  # The base class's, because PngImageFile's decodes the whole picture.
  return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def pictures_below(folder: Path) -> list[Path]:
  """The pictures at any depth below `folder`, sorted; hidden files and folders are passed over."""
  return [
    path
    for path in sorted(folder.rglob('*'))
    if path.suffix.lower() in SUFFIXES
    and not any(part.startswith('.') for part in path.relative_to(folder).parts)
  ]


def files_by_stem(folder: Path, ending: str = '') -> dict[str, Path]:
  """{stem: file} of the pictures below `folder`.

  The stem is the path below `folder` without suffix and without `ending`: Cityscapes' pictures with
  the ending `_leftImg8bit` and its masks with `_gtFine_labelIds` have the same stems.
  """
  if not folder.is_dir():
    raise UserError(f'{folder}: no such directory')
  files = {}
  for path in pictures_below(folder):
    name = path.relative_to(folder).with_suffix('').as_posix()
    if not name.endswith(ending):
      continue
    stem = name.removesuffix(ending)
    if stem in files:
      raise UserError(f'{path}: same stem as {files[stem]}; expected one file for each stem')
    files[stem] = path
  if not files:
    raise UserError(f'{folder}: holds no pictures; expected files such as NAME{ending}.png')
  return files


def pair_by_stem(
  images: Mapping[str, Path], label_dir: Path, label_ending: str = ''
) -> list[tuple[Path, Path]]:
  """(picture, mask) for each picture; masks of no picture are left aside, as splits need that."""
  labels = files_by_stem(label_dir, label_ending)
  missing = [stem for stem in images if stem not in labels]
  if missing:
    stem, *others = missing
    more = f'; so have {len(others)} more: {", ".join(others[:10])}' if others else ''
    raise UserError(
      f'{images[stem]}: has no mask; expected {label_dir / (stem + label_ending)}.png{more}'
    )
  return [(image, labels[stem]) for stem, image in images.items()]
