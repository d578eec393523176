"""Records by number: from files, read at each access, or kept in memory from their first use."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from seg_jax.data.datasets.base import WORDS, DatasetInfo, check_extras
from seg_jax.data.files import image_orientation, image_size, read_image, read_mask, turn
from seg_jax.data.label_map import LabelMap, to_classes, value_counts
from seg_jax.errors import UserError


class Source(Protocol):
  """Random access to the records of one split.

  A record is a dict with `image` uint8 [H, W, 3] (RGB) and `label` uint8 [H, W] (classes, 255 =
  ignore), and what `data.extras` asks for: `instances` int32 [H, W] or [H, W, L] with `classes`
  and `is_crowd` (see `seg_jax.data.instances`), and `depth` float32 [H, W] in metres (0 = unknown).
  `repr` must be the same in every process: Grain checks it.
  """

  info: DatasetInfo
  names: Sequence[str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

  def size(self, index: int) -> tuple[int, int]:
    """Rows and columns of a record, without decoding it."""
    ...


class FileSource:
  """A `Source` of files below `root`, read at each access.

  Each of `records` is a dict: `image` is a path; `label` is what `read_raw` takes, a path unless
  said otherwise; `instances` and `depth`, where the dataset has them, are what their readers take.
  Whatever the labels are stored as, `read_raw` gives raw values [H, W] or colours [H, W, 3], and
  `label_map`, here and nowhere else, makes classes of them.

  `read_instances(item, label)` returns what `seg_jax.data.instances` describes, and
  `read_depth(item)` float32 [H, W] in metres, 0 where it is not known.

  `read_image` and `image_size` are those of `seg_jax.data.files`, or of `seg_jax.data.bands`.
  `names` are those of the records, unless the pictures are files below `root` and have their own.
  """

  def __init__(
    self,
    info: DatasetInfo,
    records: Sequence[Mapping[str, Any]],
    label_map: LabelMap,
    root: Path,
    *,
    extras: Sequence[str] = (),
    read_raw: Callable = read_mask,
    read_instances: Callable | None = None,
    read_depth: Callable | None = None,
    names: Sequence[str] | None = None,
    read_image: Callable = read_image,
    image_size: Callable = image_size,
  ):
    self.info = info
    self.names = names or [record['image'].relative_to(root).as_posix() for record in records]
    self.records, self.label_map = records, label_map
    self._read_image, self._image_size = read_image, image_size
    self._read_raw, self._read_instances, self._read_depth = read_raw, read_instances, read_depth
    self._extras = check_extras(
      extras,
      info,
      [
        name
        for name, reader in (('instances', read_instances), ('depth', read_depth))
        if reader is not None
      ],
    )

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    files = self.records[index]
    image, raw = self._read_image(files['image']), self._read_raw(files['label'])
    label = to_classes(raw, self.label_map, _place(files['label']))
    record = {'label': label}
    if 'instances' in self._extras:
      record |= self._read_instances(files['instances'], label)
    if 'depth' in self._extras:
      record['depth'] = self._read_depth(files['depth'])
    turned = functools.partial(_turned_as, image.shape[:2], files)
    return {'image': image, **{key: turned(key, array) for key, array in record.items()}}

  def size(self, index: int) -> tuple[int, int]:
    return self._image_size(self.records[index]['image'])

  def raw_values(self, index: int) -> dict[str, int]:
    """The pixels of each value or colour of the mask, before any of them has a meaning."""
    return value_counts(self._read_raw(self.records[index]['label']))

  def __repr__(self) -> str:
    names = hashlib.sha256('\n'.join(self.names).encode()).hexdigest()[:12]
    return f'FileSource({self.info.name}, {len(self)} records, names {names})'


def _turned_as(size: tuple[int, int], files: Mapping, key: str, array: np.ndarray) -> np.ndarray:
  """`array` with the picture's size; turned as its EXIF tells, if that alone makes it fit."""
  if array.ndim == 1 or array.shape[:2] == size:
    return array
  if array.shape[1::-1] == size and (orientation := image_orientation(files['image'])) >= 5:
    logging.log_first_n(
      logging.WARNING,
      '%s is stored on its side, and so is its mask: both are turned',
      1,
      files['image'],
    )
    return turn(array, orientation)
  raise UserError(
    f'{files["image"]} has {size[0]} x {size[1]} (rows x columns) and its {WORDS[key]}'
    f' {_place(files[key])} {array.shape[0]} x {array.shape[1]}; expected the same size'
  )


def _place(item) -> str:
  """What to call a file, or the several things that a reader takes together, in a message."""
  return str(item[0] if isinstance(item, tuple) else item)


class CachedSource:
  """`source`, with each record kept in memory, read-only, from its first use.

  Every process that reads it fills a cache of its own; a pickle leaves the cache behind.
  """

  def __init__(self, source: Source):
    self.info, self.names, self.size = source.info, source.names, source.size
    self._source = source
    self._records = {}

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    # Two threads may decode the same record once; a lock around decoding would cost more.
    if index not in self._records:
      record = self._source[index]
      for array in record.values():
        array.setflags(write=False)
      self._records[index] = record
    return dict(self._records[index])

  def __repr__(self) -> str:
    return repr(self._source)

  def __reduce__(self):
    return CachedSource, (self._source,)


def cached(source: Source, cache_gib: float, bytes_per_pixel: int = 4) -> Source:
  """`source` behind a cache if all its records, decoded, fit into `cache_gib`."""
  room = cache_gib * 2**30
  for index in range(len(source)):
    with contextlib.suppress(UserError):  # told when the record itself is read
      rows, columns = source.size(index)
      room -= rows * columns * bytes_per_pixel
    if room < 0:
      logging.info('%r does not fit into %g GiB: files are read each time', source, cache_gib)
      return source
  return CachedSource(source)
