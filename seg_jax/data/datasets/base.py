"""What every dataset is: facts about its classes, and records by number.

A dataset of files is a `DatasetInfo`, a `LabelMap` and a list of (picture, mask) pairs:
`FileSource` does the rest.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from absl import logging

from seg_jax.data.files import (
  LabelMap,
  image_size,
  read_image,
  read_label,
  read_mask,
  value_counts,
)
from seg_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInfo:
  """Names and colours of the classes; class `i` is `class_names[i]`, drawn in `palette[i]`."""

  name: str
  class_names: tuple[str, ...]
  palette: np.ndarray  # uint8 [num_classes, 3]

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


class Source(Protocol):
  """Random access to the records of one split.

  A record is a dict with `image` uint8 [H, W, 3] (RGB) and `label` uint8 [H, W] (classes, 255 =
  ignore); generated scenes add `instances` int32 [H, W] (0 = none) and `depth` float32 [H, W] in
  metres. `repr` must be the same in every process: Grain checks it.
  """

  info: DatasetInfo
  names: Sequence[str]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

  def size(self, index: int) -> tuple[int, int]:
    """Rows and columns of a record, without decoding it."""
    ...


class FileSource:
  """A `Source` of (picture, mask) files below `root`, read at each access."""

  def __init__(
    self, info: DatasetInfo, pairs: Sequence[tuple[Path, Path]], label_map: LabelMap, root: Path
  ):
    self.info = info
    self.names = [image.relative_to(root).as_posix() for image, _ in pairs]
    self._pairs = list(pairs)
    self._label_map = label_map

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    image_path, label_path = self._pairs[index]
    image, label = read_image(image_path), read_label(label_path, self._label_map)
    if image.shape[:2] != label.shape:
      raise UserError(
        f'{image_path} has {_text_size(image)} (rows x columns) and its mask {label_path}'
        f' {_text_size(label)}; expected the same size'
      )
    return {'image': image, 'label': label}

  def size(self, index: int) -> tuple[int, int]:
    return image_size(self._pairs[index][0])

  def raw_values(self, index: int) -> dict[str, int]:
    """The pixels of each value or colour of the mask, before any of them has a meaning."""
    return value_counts(read_mask(self._pairs[index][1]))

  def __repr__(self) -> str:
    names = hashlib.sha256('\n'.join(self.names).encode()).hexdigest()[:12]
    return f'FileSource({self.info.name}, {len(self)} records, names {names})'


def _text_size(array: np.ndarray) -> str:
  return f'{array.shape[0]} x {array.shape[1]}'


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


def cached(source: Source, cache_gib: float) -> Source:
  """`source` behind a cache if all its records, decoded, fit into `cache_gib`."""
  room = cache_gib * 2**30
  for index in range(len(source)):
    with contextlib.suppress(UserError):  # told when the record itself is read
      rows, columns = source.size(index)
      room -= rows * columns * 4
    if room < 0:
      logging.info('%r does not fit into %g GiB: files are read each time', source, cache_gib)
      return source
  return CachedSource(source)


def dataset_dir(data_config) -> Path:
  """The directory that `data.dir` names, or a `UserError`."""
  if not data_config.dir:
    raise UserError(f"data.dir is not set; expected the directory of '{data_config.name}'")
  path = Path(data_config.dir).expanduser()
  if not path.is_dir():
    raise UserError(f'data.dir: there is no directory {path}')
  return path


def check_split(split: str, known: Sequence[str]) -> None:
  if split not in known:
    raise UserError(f"there is no split '{split}'; expected one of {', '.join(known)}")


def voc_colormap(num_classes: int) -> np.ndarray:
  """uint8 [num_classes, 3]: PASCAL VOC's colours, the bits of the class spread over R, G and B."""
  classes = np.arange(num_classes)[:, None]
  bits = classes >> np.arange(24) & 1  # bit 3k + c of the class is bit 7 - k of channel c
  return sum(bits[:, 3 * k : 3 * k + 3] << 7 - k for k in range(8)).astype(np.uint8)
