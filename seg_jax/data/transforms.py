"""Random pictures out of one record: zoom and crop, flip, change of colour.

Every transform is `(record, rng, ...) -> record` over the dict that a `Source` yields: `image`
uint8 [H, W, 3], `label` uint8 [H, W], and where there are any `instances` int32 [H, W] or
[H, W, L] and `depth` float32 [H, W] in metres. One random draw moves all of them alike, and what
has one dimension, the table of the instances, stays. The input is never written to (records may be
cached and shared), but the output may share memory with it.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from seg_jax import IGNORE

Record = dict[str, np.ndarray]

# Of ITU-R BT.601; they sum to 1, so a change of saturation keeps the grey value.
_LUMA = np.array([0.299, 0.587, 0.114])


def augment(record: Record, rng: np.random.Generator, data_config) -> Record:
  """What training does to a record: crop, flip and colour, as `config.data` says.

  Returns arrays of `data_config.crop_size` rows and columns.
  """
  record = random_crop(
    record,
    rng,
    crop_size=data_config.crop_size,
    image_scale=data_config.image_scale,
    scale_range=data_config.scale_range,
    mean=data_config.mean,
  )
  if data_config.flip:
    record = random_flip(record, rng)
  return photometric(record, rng, data_config.photometric)


def random_crop(
  record: Record,
  rng: np.random.Generator,
  *,
  crop_size: tuple[int, int],
  image_scale: float,
  scale_range: tuple[float, float],
  mean: tuple[float, float, float],
) -> Record:
  """A window of `crop_size` (rows, columns) at a random place of the record at a random zoom.

  The zoom is `image_scale` times a log-uniform draw from `scale_range`. `crop_size / zoom` source
  pixels, rounded, are cut out first and resized to exactly `crop_size` after, so the cost is that
  of the crop and not of the picture. On an axis where the picture is smaller than the window it
  lies at a random place inside it, surrounded as `pad` does with `mean`.

  Labels, instances and depth take the nearest source pixel, centre to centre; the image is averaged
  over areas when it shrinks and linear when it grows. Depth values stay metres as they were: the
  zoom is not taken for a change of distance.
  """
  zoom = image_scale * math.exp(rng.uniform(*np.log(scale_range)))
  rows, columns = (max(1, round(size / zoom)) for size in crop_size)
  height, width = record['label'].shape
  top, left = _window_start(rng, height, rows), _window_start(rng, width, columns)

  inside = slice(max(top, 0), top + rows), slice(max(left, 0), left + columns)
  record = _each_map(record, lambda key, array: array[inside])
  bottom, right = max(top + rows - height, 0), max(left + columns - width, 0)
  record = pad(record, (max(-top, 0), bottom, max(-left, 0), right), mean)

  if (rows, columns) == tuple(crop_size):
    return record
  smooth = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
  # The plain INTER_NEAREST looks at corners, half a pixel off the image's centres.
  return _each_map(
    record,
    lambda key, array: cv2.resize(
      array,
      (crop_size[1], crop_size[0]),
      interpolation=smooth if key == 'image' else cv2.INTER_NEAREST_EXACT,
    ),
  )


def _each_map(record: Record, change: Callable[[str, np.ndarray], np.ndarray]) -> Record:
  """`change(key, array)` of each array that has rows and columns."""
  return {key: array if array.ndim == 1 else change(key, array) for key, array in record.items()}


def _window_start(rng: np.random.Generator, size: int, window: int) -> int:
  """Uniform among the positions where one of the two lies inside the other."""
  low, high = sorted((0, size - window))
  return int(rng.integers(low, high, endpoint=True))


def pad(
  record: Record, margins: tuple[int, int, int, int], mean: tuple[float, float, float]
) -> Record:
  """Adds `margins` (top, bottom, left, right) pixels: image `mean`, label 255, the others 0."""
  if not any(margins):
    return record
  fill = {'image': mean_colour(mean).tolist(), 'label': IGNORE}
  return _each_map(
    record,
    lambda key, array: cv2.copyMakeBorder(
      array, *margins, cv2.BORDER_CONSTANT, value=fill.get(key, 0)
    ),
  )


def mean_colour(mean: tuple[float, float, float]) -> np.ndarray:
  """The uint8 [3] colour nearest to `mean`, per channel in [0, 1]."""
  return np.rint(255 * np.asarray(mean)).astype(np.uint8)


def random_flip(record: Record, rng: np.random.Generator) -> Record:
  """Left to right, all arrays alike, one time in two."""
  if rng.random() < 0.5:
    return record
  return _each_map(record, lambda key, array: cv2.flip(array, 1))


def photometric(record: Record, rng: np.random.Generator, strength: float) -> Record:
  """Brightness, contrast and saturation, each times a factor in [1 - strength, 1 + strength].

  Brightness scales the colours, contrast their distance from the picture's mean grey, saturation
  their distance from their own grey. All three are affine in the colour, so one 3 x 4 matrix and
  one rounding do them at once. Strength 0 is the identity.
  """
  if strength == 0:
    return record
  image = record['image']
  brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
  colour = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * _LUMA)
  offset = brightness * (1 - contrast) * np.dot(_LUMA, cv2.mean(image)[:3])
  affine = np.column_stack([colour, np.full(3, offset)])
  return {**record, 'image': cv2.transform(image, affine)}
