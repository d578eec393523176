"""Pictures with other than three channels of 8 bits: TIFF of any number of bands, and PNG.

`config.data.channels` and `config.data.bits` say what every picture has to have. Nothing is
converted: 16 bits stay 16 bits up to the device.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from seg_jax.data import files
from seg_jax.errors import UserError

_DTYPES = {8: np.uint8, 16: np.uint16}
_TIFF = ('.tif', '.tiff')


def readers(data_config) -> dict[str, Callable]:
  """`read_image(path)` and `image_size(path)` for what `config.data` says of the pictures."""
  channels, bits = data_config.channels, data_config.bits
  if (channels, bits) == (3, 8):
    return {'read_image': files.read_image, 'image_size': files.image_size}
  return {
    'read_image': functools.partial(read_bands, channels=channels, bits=bits),
    'image_size': functools.partial(bands_size, channels=channels),
  }


def read_bands(path: Path, *, channels: int, bits: int) -> np.ndarray:
  """[H, W, channels] with the values that are stored, uint8 or uint16.

  The bands of a TIFF may be stored together or one after the other, as samples or as pages.

  Raises:
    UserError: no TIFF or PNG, damaged, or with other bands or bits.
  """
  if path.suffix.lower() in _TIFF:
    with _opened(path) as series, _faults(path):
      array = series.asarray()
      array = np.moveaxis(array, 0, -1) if _bands_first(series, channels) else array
  elif path.suffix.lower() == '.png':
    array = _read_png(path)
  else:
    raise UserError(
      f'{path}: data.channels is {channels} and data.bits {bits}; expected a TIFF or a PNG'
    )
  array = array[..., None] if array.ndim == 2 else array
  if array.ndim != 3 or array.shape[-1] != channels:
    raise UserError(
      f'{path}: {" x ".join(map(str, array.shape))} values; expected rows x columns x {channels}'
      ' (data.channels)'
    )
  if array.dtype != _DTYPES[bits]:
    raise UserError(
      f'{path}: values of type {array.dtype}; expected {np.dtype(_DTYPES[bits])}'
      f' (data.bits is {bits})'
    )
  return np.ascontiguousarray(array)


def bands_size(path: Path, *, channels: int) -> tuple[int, int]:
  """Rows and columns of what `read_bands` returns, from the file's header alone."""
  if path.suffix.lower() not in _TIFF:
    return files.image_size(path)
  with _opened(path) as series:
    return series.shape[1:3] if _bands_first(series, channels) else series.shape[:2]


def _bands_first(series, channels: int) -> bool:
  """Whether each band is stored by itself; otherwise a pixel's values are stored together."""
  return series.ndim == 3 and series.axes.endswith('YX') and series.shape[0] == channels


def _read_png(path: Path) -> np.ndarray:
  orientation = files.image_orientation(path)  # which `files.image_size` minds, and OpenCV does not
  with _faults(path):
    array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
      raise OSError('truncated or damaged PNG')
  array = array if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[-1]]]  # from BGR
  return files.turn(array, orientation)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
  """The first picture of a TIFF, as tifffile's series."""
  try:
    import tifffile
  except ImportError as error:
    raise UserError(f"{path}: needs tifffile; pip install 'seg_jax[tiff]'") from error
  with _faults(path):
    file = tifffile.TiffFile(path)
  with file:
    with _faults(path):
      series = file.series[0]
      if np.prod(series.shape, dtype=float) > 16 * files.MAX_PIXELS:
        raise OSError(f'{" x ".join(map(str, series.shape))} values are too many')
    yield series


@contextlib.contextmanager
def _faults(path: Path) -> Iterator[None]:
  """Whatever a decoder raises is the file's fault."""
  try:
    yield
  except MemoryError:
    raise
  except FileNotFoundError:
    raise UserError(f'{path}: no such file') from None
  except Exception as error:
    raise UserError(f'{path}: cannot be read ({error}); expected a whole picture file') from error
