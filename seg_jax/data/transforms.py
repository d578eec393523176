"""Random pictures out of one record: zoom and crop, flip.

Every transform is `(record, rng, ...) -> record` over the dict that a `Source` yields: `image`
uint8 [H, W, 3] (or uint16, or with other bands), `label` uint8 [H, W], and where there are any
`instances` int32 [H, W] or [H, W, L] and `depth` float32 [H, W] in metres. One random draw moves
all of them alike, and what has one dimension, the table of the instances, stays. The input is never
written to (records may be cached and shared), but the output may share memory with it.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from seg_jax import IGNORE

Record = dict[str, np.ndarray]


def augment(record: Record, rng: np.random.Generator, data_config) -> Record:
  """What training does to a record on the host: crop and flip, as `config.data` says.

  Colours change on the device (`seg_jax.ops.colour`). Returns arrays of `data_config.crop_size`
  rows and columns.
  """
  record = random_crop(
    record,
    rng,
    crop_size=data_config.crop_size,
    image_scale=data_config.image_scale,
    scale_range=data_config.scale_range,
    mean=data_config.mean,
  )
  return random_flip(record, rng) if data_config.flip else record


def random_crop(
  record: Record,
  rng: np.random.Generator,
  *,
  crop_size: tuple[int, int],
  image_scale: float,
  scale_range: tuple[float, float],
  mean: Sequence[float],
) -> Record:
  """A window of `crop_size` (rows, columns) at a random place of the record at a random zoom.

  The zoom is `image_scale` times a log-uniform draw from `scale_range`. `crop_size / zoom` source
  pixels, rounded, are cut out first and resized to exactly `crop_size` after, so the cost is that
  of the crop and not of the picture. On an axis where the picture is smaller than the window it
  lies at a random place inside it, surrounded as `pad` does with `mean`.

  Labels, instances and depth take the nearest source pixel, centre to centre; the image is linear
  when it grows, softened first when it shrinks, and averaged over areas when it shrinks to half or
  less. Depth values stay metres as they were: the zoom is not taken for a change of distance.
  """
  zoom = image_scale * math.exp(rng.uniform(*np.log(scale_range)))
  rows, columns = (max(1, round(size / zoom)) for size in crop_size)
  height, width = record['label'].shape
  top, left = _window_start(rng, height, rows), _window_start(rng, width, columns)

  inside = slice(max(top, 0), top + rows), slice(max(left, 0), left + columns)
  record = _each_map(record, lambda key, array: array[inside])
  zoom = crop_size[0] / rows
  if 0.5 < zoom < 1:
    record['image'] = _soften(record['image'], zoom)
  bottom, right = max(top + rows - height, 0), max(left + columns - width, 0)
  record = pad(record, (max(-top, 0), bottom, max(-left, 0), right), mean)

  if (rows, columns) == tuple(crop_size):
    return record
  smooth = cv2.INTER_LINEAR if zoom > 0.5 else cv2.INTER_AREA
  # The plain INTER_NEAREST looks at corners, half a pixel off the image's centres.
  return _each_map(
    record,
    lambda key, array: _by_fours(
      cv2.resize,
      array,
      (crop_size[1], crop_size[0]),
      interpolation=smooth if key == 'image' else cv2.INTER_NEAREST_EXACT,
    ),
  )


def _soften(image: np.ndarray, zoom: float) -> np.ndarray:
  """`image` such that linear interpolation at `zoom`, from 1/2 to 1, does not alias.

  Together they come close to a triangle as wide as the reduction, Pillow's and `jax.image.resize`'s
  filter, whose variance is 1 / (6 zoom²); linear interpolation by itself has 1/6. INTER_AREA, which
  does not alias either, takes four times as long.
  """
  side = (zoom**-2 - 1) / 12
  taps = np.array([side, 1 - 2 * side, side])
  return _by_fours(cv2.sepFilter2D, image, -1, taps, taps, borderType=cv2.BORDER_REPLICATE)


def _each_map(record: Record, change: Callable[[str, np.ndarray], np.ndarray]) -> Record:
  """`change(key, array)` of each array that has rows and columns."""
  return {key: array if array.ndim == 1 else change(key, array) for key, array in record.items()}


def _by_fours(function: Callable, array: np.ndarray, *args, **kwargs) -> np.ndarray:
  """`function` of OpenCV, which takes up to four channels, and drops the axis of a single one."""
  if array.ndim == 2 or 2 <= array.shape[2] <= 4:
    return function(array, *args, **kwargs)
  parts = [array[..., i : i + 4] for i in range(0, array.shape[2], 4)]
  return np.dstack([function(np.ascontiguousarray(part), *args, **kwargs) for part in parts])


def _window_start(rng: np.random.Generator, size: int, window: int) -> int:
  """Uniform among the positions where one of the two lies inside the other."""
  low, high = sorted((0, size - window))
  return int(rng.integers(low, high, endpoint=True))


def pad(record: Record, margins: tuple[int, int, int, int], mean: Sequence[float]) -> Record:
  """Adds `margins` (top, bottom, left, right) pixels: image `mean`, label 255, the others 0."""
  if not any(margins):
    return record
  top, bottom, left, right = margins

  def padded(key, array):
    rows, columns, *channels = array.shape
    fill = mean_colour(mean, array.dtype) if key == 'image' else IGNORE * (key == 'label')
    line = np.full((left + columns + right, *channels), fill, array.dtype)
    result = np.tile(line, (top + rows + bottom, *[1] * line.ndim))
    result[top : top + rows, left : left + columns] = array
    return result

  return _each_map(record, padded)


def mean_colour(mean: Sequence[float], dtype=np.uint8) -> np.ndarray:
  """The colour [C] nearest to `mean`, per channel in [0, 1], among those of an integer type."""
  return np.rint(np.iinfo(dtype).max * np.asarray(mean)).astype(dtype)


def random_flip(record: Record, rng: np.random.Generator) -> Record:
  """Left to right, all arrays alike, one time in two."""
  if rng.random() < 0.5:
    return record
  return _each_map(record, lambda key, array: _by_fours(cv2.flip, array, 1))
