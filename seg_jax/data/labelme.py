"""LabelMe's JSON files, one for each picture, to shapes: https://labelme.io.

A `polygon`, `rectangle`, `oriented_rectangle` or `circle` is drawn with its outline, as LabelMe's
own converters do; a `mask` is a PNG, in base64, of the box between its two points. Lines and points
have no area. Shapes of one label with the same `group_id` are one object.
"""

import base64
import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from seg_jax.data import files
from seg_jax.data.annotations import Shape, Shapes, check_size, class_of, get, load
from seg_jax.errors import UserError

KINDS = ('polygon', 'rectangle', 'oriented_rectangle', 'circle', 'mask')


def labelme_shapes(item: tuple[Path, Path], classes: Mapping[str, int]) -> Shapes:
  """Of a JSON file and the picture that it belongs to."""
  path, picture = item
  content = load(path)
  rows = get(path, content, 'shapes', list)
  size = content.get('imageHeight'), content.get('imageWidth')
  if size == (None, None):  # the earliest versions did not write it
    size = files.image_size(picture)
  check_size(path, *size)

  def shapes():
    for i, row in enumerate(rows):
      label = get(f'{path}, shapes[{i}]', row, 'label', str)
      place = f"{path}, shapes[{i}] '{label}'"
      value, outline = class_of(place, label, classes), get(place, row, 'points', list)
      try:
        mask = _mask(place, row, _points(outline, size), size)
      except ValueError as error:
        raise UserError(f'{place}: {error}; its points are {outline!s:.60}') from error
      yield Shape(value, mask, False, row.get('group_id'))

  return size, shapes()


def count_labels(paths: Sequence[Path]) -> dict[str, int]:
  """The labels in LabelMe's files, each with the number of its shapes, the commonest first."""
  counts = collections.Counter()
  for path in paths:
    for i, row in enumerate(get(path, load(path), 'shapes', list)):
      counts[get(f'{path}, shapes[{i}]', row, 'label', str)] += 1
  return dict(counts.most_common())


def _points(outline: list, size: tuple[int, int]) -> np.ndarray:
  """float64 [N, 2], x and y, in the picture, or outside by its size at most."""
  try:
    xy = np.array(outline)
  except ValueError:
    xy = np.empty(0)
  if xy.ndim != 2 or xy.shape[1] != 2 or xy.dtype.kind not in 'iuf':
    raise ValueError('expected points of two numbers, x and y')
  if not (np.abs(xy / size[::-1] - 0.5) <= 1.5).all():  # Pillow would draw for hours
    raise ValueError(f'expected points in {size[0]} x {size[1]} pixels (rows x columns)')
  return xy.astype(np.float64)


def _mask(place: str, row: Mapping, xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """bool [H, W] of a shape. ValueError: its points are not what its type has."""
  kind = row.get('shape_type') or 'polygon'
  if kind not in KINDS:
    raise UserError(f'{place}: shape_type is {kind!r}; expected {", ".join(KINDS)}')
  expected = {'polygon': f'{max(len(xy), 3)}', 'oriented_rectangle': '4'}.get(kind, '2')
  if str(len(xy)) != expected:
    raise ValueError(f'a {kind} of {len(xy)} points, expected {expected}')
  if kind == 'mask':
    data = base64.b64decode(get(place, row, 'mask', str), validate=True)
    patch = files.read_mask(files.Encoded(data, f'{place}: mask')) > 0
    return _placed(patch, xy.astype(int), size)
  canvas = Image.new('L', size[::-1])
  draw = ImageDraw.Draw(canvas)
  if kind == 'circle':
    radius = np.hypot(*(xy[1] - xy[0]))
    draw.ellipse([*(xy[0] - radius), *(xy[0] + radius)], fill=1, outline=1)
  elif kind == 'rectangle':
    draw.rectangle([*xy.min(0), *xy.max(0)], fill=1, outline=1)
  else:
    draw.polygon([tuple(point) for point in xy], fill=1, outline=1)
  return np.array(canvas, bool)


def _placed(patch: np.ndarray, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """`patch` at its place between two corners, (x, y) of its first and of its last pixel."""
  (left, top), (right, bottom) = corners
  if patch.shape != (bottom - top + 1, right - left + 1):
    raise ValueError(f'a mask of {patch.shape[0]} x {patch.shape[1]} pixels (rows x columns)')
  mask = np.zeros(size, bool)
  inside = mask[max(top, 0) : max(bottom + 1, 0), max(left, 0) : max(right + 1, 0)]
  inside[:] = patch[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]]
  return mask
