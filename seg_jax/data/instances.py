"""Objects: what datasets ship, as one id map and its table; and the arrays of a batch.

In a record, `instances` is int32 [H, W]: 0 where there is no object, k where there is object k, and
row k - 1 of `classes` int32 [K] and `is_crowd` bool [K] says what it is. Objects that overlap lie
on several layers, int32 [H, W, L], each of them such a map, so nothing is lost and a transform
still moves one array.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from absl import logging

Instances = dict[str, np.ndarray]  # `instances`, `classes`, `is_crowd`


def from_ids(ids: np.ndarray, meaning: Callable[[int], tuple[int, bool] | None]) -> Instances:
  """From a map [H, W] of a dataset's own ids.

  `meaning` of an id is its class and whether it stands for a crowd, or None for no object.
  """
  values, inverse = np.unique(ids, return_inverse=True)
  table = np.zeros(len(values), np.int32)
  rows = []
  for i, value in enumerate(values.tolist()):
    if (row := meaning(value)) is not None:
      rows.append(row)
      table[i] = len(rows)
  return {'instances': table[inverse].reshape(ids.shape), **_table(rows)}


def from_masks(
  masks: Iterable[np.ndarray], rows: Sequence[tuple[int, bool]], size: tuple[int, int]
) -> Instances:
  """From one mask [H, W] an object, true or non-zero where it is, and (class, is it a crowd)."""
  layers = [np.zeros(size, np.int32)]
  for k, mask in enumerate(masks, 1):
    inside = np.asarray(mask, bool)
    free = (layer for layer in layers if not layer[inside].any())
    layer = next(free, None)
    if layer is None:
      layers.append(layer := np.zeros(size, np.int32))
    layer[inside] = k
  instances = layers[0] if len(layers) == 1 else np.stack(layers, -1)
  return {'instances': instances, **_table(rows)}


def _table(rows: Sequence[tuple[int, bool]]) -> Instances:
  return {
    'classes': np.array([row[0] for row in rows], np.int32),
    'is_crowd': np.array([row[1] for row in rows], bool),
  }


def padded(record: Instances, max_instances: int, *, crowds: bool = False) -> dict[str, np.ndarray]:
  """The objects of a record, filled up to a fixed number M with rows of zeros.

  Boxes are those of the pixels that are there, after a crop for instance; an object of which none
  is left has no row. Of more than M objects the largest are kept, which is said once. With `crowds`
  the others are there as crowds, one of each class, so that it is no mistake to find them.

  Returns:
    `boxes` float32 [M, 4], y0, x0, y1, x1 in pixels, y1 and x1 one past the last; `classes` int32
    [M]; `masks` bool [M, H, W]; `is_crowd` bool [M]; `instance_valid` bool [M], False in the rows
    that fill up.
  """
  ids = record['instances']
  layers = ids.reshape(*ids.shape[:2], -1)
  areas = np.bincount(layers.ravel(), minlength=len(record['classes']) + 1)[1:]
  rows = _rows(record, areas, max_instances, crowds)
  table = _table([(record['classes'][objects[0]], is_crowd) for objects, is_crowd in rows])
  masks = np.zeros((max_instances, *ids.shape[:2]), bool)
  boxes = np.zeros((max_instances, 4), np.float32)
  for row, (objects, _) in enumerate(rows):
    for k in objects:
      masks[row] |= (layers == k + 1).any(-1)
    (y,), (x,) = np.nonzero(masks[row].any(1)), np.nonzero(masks[row].any(0))
    boxes[row] = y[0], x[0], y[-1] + 1, x[-1] + 1
  fill = (0, max_instances - len(rows))
  return {
    'boxes': boxes,
    'masks': masks,
    **{name: np.pad(array, fill) for name, array in table.items()},
    'instance_valid': np.arange(max_instances) < len(rows),
  }


def _rows(record, areas, count, crowds):
  """The objects of each row, at most `count`, and whether they are a crowd."""
  classes, found = record['classes'], np.flatnonzero(areas)
  if len(found) <= count:
    return [([k], record['is_crowd'][k]) for k in found]
  logging.log_first_n(
    logging.WARNING,
    'a picture has %d objects, of which the %d largest are kept (data.max_instances)',
    1,
    len(found),
    count,
  )
  found, kept = found[np.argsort(-areas[found], kind='stable')], count
  if crowds:
    while kept and kept + len(np.unique(classes[found[kept:]])) > count:
      kept -= 1
  largest, rest = np.sort(found[:kept]), found[kept:]
  others = [(rest[classes[rest] == k], True) for k in np.unique(classes[rest])] if crowds else []
  return [*others[: count - kept], *(([k], record['is_crowd'][k]) for k in largest)]
