"""Outlines and run lengths, as JSON annotations have them, to masks."""

from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask


def segmentation_mask(segmentation: Sequence | Mapping, rows: int, columns: int) -> np.ndarray:
  """bool [rows, columns] of COCO's `segmentation`: polygons, or run lengths, packed or not.

  Polygons are lists x0, y0, x1, y1, ... in pixels, of which a mask covers the union; run lengths
  are a dict of `counts` and `size`.
  """
  if isinstance(segmentation, Mapping):
    runs = segmentation
    if isinstance(runs['counts'], list):
      runs = coco_mask.frPyObjects(runs, rows, columns)
  else:
    runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, rows, columns))
  return coco_mask.decode(runs).astype(bool)
