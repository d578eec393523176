"""One pass over a split: all that is counted of it."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool

import numpy as np
from tqdm import tqdm

from seg_jax import IGNORE, losses
from seg_jax.data import files
from seg_jax.data.datasets.sources import Source
from seg_jax.data.label_map import meanings
from seg_jax.errors import UserError
from seg_jax.inspection import suspicions

WEIGHTINGS = ('median_frequency', 'enet')


@dataclasses.dataclass(frozen=True)
class Seen:
  """What is kept of a record."""

  size: tuple[int, int]
  histogram: np.ndarray  # int64 [256]
  one_colour: bool
  picture: bytes  # a digest of the pixels, so that another file format doesn't hide a duplicate
  mode: str  # Pillow's, of the picture's file; '' where there is no file
  orientation: int  # EXIF's
  areas: np.ndarray | None  # int64 [K]: the pixels of each object
  classes: np.ndarray | None  # int32 [K]
  is_crowd: np.ndarray | None  # bool [K]
  depths: np.ndarray | None  # lowest, highest and sum in metres, and number of known depths


class _Counts:
  """What the records of a split add up to."""

  def __init__(self):
    self.pixels, self.images, self.image_pixels = np.zeros((3, 256), np.int64)  # by label value
    self.sizes = collections.Counter()
    self.raw_values = collections.Counter()
    self.objects = []  # of each record: areas, classes, is_crowd
    self.depths = []

  def add(self, seen: Seen) -> None:
    self.sizes[seen.size] += 1
    self.pixels += seen.histogram
    self.images += seen.histogram > 0
    self.image_pixels += np.where(seen.histogram > 0, seen.histogram[:IGNORE].sum(), 0)
    if seen.areas is not None:
      self.objects.append((seen.areas, seen.classes, seen.is_crowd))
    if seen.depths is not None:
      self.depths.append(seen.depths)


def examine(source: Source, split: str, owners: dict, max_instances: int) -> tuple[dict, list[int]]:
  """Reads every record once: the report, and the numbers of the records that can be read.

  `owners` knows the pictures met so far, in this split and in others, and grows.
  """
  counts, suspicious, readable = _Counts(), collections.defaultdict(list), []
  scan = in_threads(lambda i: (_raw_values(source, i), _observe(source, i)), len(source))
  for i, (raw, seen) in enumerate(
    tqdm(scan, split, len(source), unit='image', leave=False, disable=None, dynamic_ncols=True)
  ):
    counts.raw_values.update(raw)
    if isinstance(seen, UserError):
      suspicious['unreadable'].append(str(seen))
      continue
    readable.append(i)
    counts.add(seen)
    name = source.names[i]
    for kind, remark in suspicions.of_record(seen, source.info.class_names, max_instances):
      suspicious[kind].append(f'{name}: {remark}')
    if seen.picture in owners:
      kind, remark = suspicions.of_owner(owners[seen.picture], split)
      suspicious[kind].append(f'{name}: {remark}')
    owners.setdefault(seen.picture, (split, name))
  for kind, remark in suspicions.of_split(source, split, counts.raw_values):
    suspicious[kind].append(remark)
  return _report(source, split, counts) | {'suspicious': suspicious}, readable


def _report(source: Source, split: str, counts: _Counts) -> dict:
  info, total = source.info, max(int(counts.pixels.sum()), 1)
  rows = [
    {'pixels': int(p), 'share': p / total, 'images': int(n)}
    for p, n in zip(counts.pixels, counts.images, strict=True)
  ]
  known = slice(info.num_classes)
  for name in WEIGHTINGS:
    weights = losses.class_weights(name, counts.pixels[known], counts.image_pixels[known])
    for row, weight in zip(rows, weights, strict=False):
      row[name] = float(weight)
  report = {
    'dataset': info.name,
    'split': split,
    'num_images': len(source),
    'official_images': info.num_images.get(split),
    'sizes': {f'{h} x {w}': n for (h, w), n in counts.sizes.most_common()},
    'classes': dict(zip(info.class_names, rows, strict=False)),
    'ignored': rows[IGNORE],
    'raw_values': dict(counts.raw_values.most_common()),
    'raw_meanings': meanings(source.label_map, info.class_names)
    if hasattr(source, 'label_map')
    else {},
  }
  if counts.objects:
    report |= _objects(counts.objects, info.class_names)
  if counts.depths:
    report['depth'] = _depth(np.array(counts.depths), total)
  return report


def _objects(objects: list, class_names) -> dict:
  """The objects of each class that has any; sizes, in pixels, are of those that are no crowds."""
  image = np.repeat(np.arange(len(objects)), [len(areas) for areas, *_ in objects])
  areas, classes, is_crowd = map(np.concatenate, zip(*objects, strict=True))
  rows = {}
  for c in np.unique(classes):
    of_class = classes == c
    sizes = areas[of_class & ~is_crowd]
    rows[class_names[c]] = {
      'objects': len(sizes),
      'crowds': int((of_class & is_crowd).sum()),
      'images': len(np.unique(image[of_class])),
      'smallest': int(sizes.min()) if len(sizes) else 0,
      'median': float(np.median(sizes)) if len(sizes) else 0.0,
    }
  return {'objects': rows, 'most_objects': max(len(areas) for areas, *_ in objects)}


def _depth(depths: np.ndarray, total: int) -> dict:
  """Metres, and the share of all pixels whose depth is not known."""
  lowest, highest, sums, known = depths.T
  seen = known > 0
  if not seen.any():
    return {'lowest': None, 'highest': None, 'mean': None, 'unknown': 1.0}
  return {
    'lowest': float(lowest[seen].min()),
    'highest': float(highest[seen].max()),
    'mean': float(sums.sum() / known.sum()),
    'unknown': float(1 - known.sum() / total),
  }


def _observe(source: Source, i: int) -> Seen | UserError:
  try:
    record = source[i]
    rgb = record['image'].dtype == np.uint8 and record['image'].shape[-1] == 3
    path = source.records[i]['image'] if rgb and hasattr(source, 'records') else None
    mode, orientation = files.image_storage(path) if path is not None else ('', 1)
  except UserError as error:
    return error
  image = np.ascontiguousarray(record['image'])
  digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
  digest.update(image)
  ids, depth = record.get('instances'), record.get('depth')
  return Seen(
    size=image.shape[:2],
    histogram=histogram(record['label']),
    one_colour=bool((image == image[0, 0]).all()),
    picture=digest.digest(),
    mode=mode,
    orientation=orientation,
    areas=None if ids is None else _areas(ids, len(record['classes'])),
    classes=record.get('classes'),
    is_crowd=record.get('is_crowd'),
    depths=None if depth is None else _depths(depth),
  )


def _areas(ids: np.ndarray, count: int) -> np.ndarray:
  return np.bincount(ids.ravel(), minlength=count + 1)[1:]


def _depths(depth: np.ndarray) -> np.ndarray:
  known = depth[depth > 0]
  if not known.size:
    return np.zeros(4)
  return np.array([known.min(), known.max(), known.sum(dtype=np.float64), known.size])


def _raw_values(source: Source, i: int) -> dict[str, int]:
  """Pixels by what stands in the mask's file; none where there is no file, or it is unreadable."""
  try:
    return source.raw_values(i) if hasattr(source, 'raw_values') else {}
  except UserError:
    return {}


def histogram(label: np.ndarray) -> np.ndarray:
  """The pixels of each value of a label, int64 [256]."""
  return np.bincount(label.ravel(), minlength=256)


def in_threads(function: Callable[[int], object], count: int) -> Iterator:
  """function(0), function(1), ... in order. Decoders and NumPy let other threads run."""
  with ThreadPool(min(16, os.cpu_count() or 1)) as pool:
    yield from pool.imap(function, range(count))
