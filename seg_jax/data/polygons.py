"""Outlines and run lengths, as JSON annotations have them, to masks.

What is malformed is a `ValueError` that says how: pycocotools itself takes an odd coordinate for
none, four for a box, and fills what too few runs leave open with whatever lies in memory.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

_FARTHEST = 1e6  # pixels from the picture's corner; the memory that an outline takes grows with it


def segmentation_mask(segmentation: Sequence | Mapping, rows: int, columns: int) -> np.ndarray:
  """bool [rows, columns] of COCO's `segmentation`: polygons, or run lengths, packed or not.

  Polygons are lists x0, y0, x1, y1, ... in pixels, of which a mask covers the union; run lengths
  are a dict of `counts` and `size`.

  Raises:
    ValueError: what is wrong with it.
  """
  if isinstance(segmentation, Mapping):
    return _from_runs(segmentation, rows, columns)
  if not isinstance(segmentation, list | tuple) or not segmentation:
    raise ValueError(f'segmentation {segmentation!r:.60}; expected polygons or run lengths')
  polygons = [_checked(polygon) for polygon in segmentation]
  runs = coco_mask.merge(coco_mask.frPyObjects(polygons, rows, columns))
  return np.ascontiguousarray(coco_mask.decode(runs), bool)


def _checked(polygon: Sequence[float]) -> list[float]:
  try:
    coordinates = np.asarray(polygon, np.float64)
  except (TypeError, ValueError):
    coordinates = np.empty(0)
  if coordinates.ndim != 1 or len(coordinates) % 2 or len(coordinates) < 6:
    raise ValueError(
      f'polygon {polygon!s:.60}; expected a list x0, y0, x1, y1, ... of three points or more'
    )
  if not (np.abs(coordinates) <= _FARTHEST).all():
    raise ValueError(f'polygon {polygon!s:.60}; expected finite coordinates in pixels')
  return coordinates.tolist()


def _from_runs(runs: Mapping, rows: int, columns: int) -> np.ndarray:
  """Runs of 0 and 1 in turn, 0 first, down one column after the other."""
  size, counts = runs.get('size'), runs.get('counts')
  if not isinstance(size, list | tuple) or tuple(size) != (rows, columns):
    raise ValueError(f"run lengths of size {size}; expected [{rows}, {columns}], the image's")
  if isinstance(counts, str | bytes):
    counts = _unpacked(counts)
  if not isinstance(counts, list | tuple) or not all(
    isinstance(count, int) and count >= 0 for count in counts
  ):
    raise ValueError(f'run lengths {counts!s:.60}; expected a list of numbers, or them packed')
  if sum(counts) != rows * columns:
    raise ValueError(
      f'run lengths of {sum(counts)} pixels; expected {rows * columns}, {rows} x {columns}'
    )
  inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
  return np.ascontiguousarray(inside.reshape(columns, rows).T)


def _unpacked(packed: str | bytes) -> list[int]:
  """Each run is digits of five bits, the least first, as characters from '0'; 32 says: more follow.

  The highest bit is the sign; from the fourth run on it is the difference to the last but one.
  """
  counts, count, bits = [], 0, 0
  for character in packed.encode() if isinstance(packed, str) else packed:
    digit = character - ord('0')
    if not 0 <= digit < 64:
      raise ValueError(f"packed run lengths with the character {chr(character)!r}; expected COCO's")
    count |= (digit & 31) << bits
    bits += 5
    if digit < 32:
      if digit & 16:
        count -= 1 << bits
      counts.append(count + (counts[-2] if len(counts) > 2 else 0))
      count = bits = 0
  if bits:
    raise ValueError('packed run lengths that break off; expected whole ones')
  return counts
