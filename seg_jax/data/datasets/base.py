"""What every dataset is: facts about its classes, and how its files are found.

A dataset of files is a `DatasetInfo`, a `LabelMap` and a list of the files of each record, with a
function for what is stored in a way of its own: `sources.FileSource` does the rest.
"""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.data.files import match_stems
from seg_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInfo:
  """The facts of a dataset; class `i` is `class_names[i]`, drawn in `palette[i]`."""

  name: str
  class_names: tuple[str, ...]
  palette: np.ndarray  # uint8 [num_classes, 3]
  things: tuple[int, ...] = ()  # the classes whose objects are told apart
  num_images: Mapping[str, int] = dataclasses.field(default_factory=dict)  # official, by split
  ids: tuple[int, ...] = ()  # the owners' numbers of the classes, where those are not 0, 1, ...
  home: str = ''  # where to get it, and under what licence
  # Paths (globs) below `data.dir`, by which its folder is known; 'a|b' where either will do.
  layout: tuple[str, ...] = ()

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


PACKED = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.rar', '.7z')
WORDS = {'label': 'mask', 'instances': 'instances', 'depth': 'depth'}


def dataset_dir(data_config, info: DatasetInfo | None = None, *inner: str) -> Path:
  """The directory that `data.dir` names, or the one of `inner` below it that holds the dataset.

  Raises:
    UserError: it is not set or missing; or it lacks what `info.layout` names, with the name of the
      dataset whose folder it looks like.
  """
  name = data_config.name
  if not data_config.dir:
    home = f'; get it from {info.home}' if info and info.home else ''
    raise UserError(f"data.dir is not set; expected the directory of '{name}'{home}")
  path = Path(data_config.dir).expanduser()
  if not path.is_dir():
    raise UserError(f'data.dir: there is no directory {path}')
  if info is None:
    return path
  root = _find(path, info, inner)
  if root is None:
    absent = next(part for part in info.layout if not is_there(path, part)).replace('|', ' or ')
    raise UserError(
      f"data.dir: {path} is not the folder of '{name}'{_whereabouts(path, info, inner)};"
      f' expected {absent} in it'
    )
  return root


def _find(path: Path, info: DatasetInfo, inner: Sequence[str]) -> Path | None:
  """`path`, or the one of `inner` below it, that has the dataset's layout."""
  for root in (path, *(path / part for part in inner)):
    if all(is_there(root, part) for part in info.layout):
      return root
  return None


def is_there(root: Path, part: str) -> bool:
  """Whether `root` holds a part of `DatasetInfo.layout`."""
  return any(any(root.glob(either)) for either in part.split('|'))


def _whereabouts(path: Path, info: DatasetInfo, inner: Sequence[str]) -> str:
  """A hint: the folder is above or below, or not unpacked yet, or it is another dataset's."""
  from seg_jax.data.datasets import recognise  # which knows all of them, this one too

  path = Path(os.path.abspath(path))
  if there := recognise(path):
    another = ', of another data.variant' if there == info.name else ''
    return f"; it looks like the folder of '{there}'{another}"
  children = sorted(child for child in path.iterdir() if child.is_dir())
  for near in (*path.parents[:3], *children):
    if _find(near, info, inner):
      return f'; did you mean {near}?'
  packed = sorted(child.name for child in path.iterdir() if child.name.endswith(PACKED))
  if packed:
    return f'; {packed[0]} lies there packed, unpack it'
  return ''


def make_records(
  images: Mapping[str, Path], extras: Sequence[str] = (), **places: tuple[Path, str]
) -> list[dict[str, Path]]:
  """The records of `sources.FileSource` for {stem: picture}, from files of the same stems.

  `places` gives the folder and the ending (see `files_by_stem`) for `label` and for any of
  `instances` and `depth`, of which those in `extras` are looked for.
  """
  columns = {
    key: match_stems(images, folder, ending, WORDS[key])
    for key, (folder, ending) in places.items()
    if key == 'label' or key in extras
  }
  return [
    {'image': image} | {key: column[i] for key, column in columns.items()}
    for i, image in enumerate(images.values())
  ]


def listed(listing: Path, folder: Path, suffix: str) -> dict[str, Path]:
  """{stem: file in `folder`} for a split's file of one stem a line, each of which has to be there.

  Raises:
    UserError: no such listing; or how many of its files are missing, as after half a download.
  """
  files = {stem: folder / f'{stem}{suffix}' for _, stem in lines(listing)}
  check_present(files.values(), listing)
  return files


def hashed_split(split: str, stems: Collection[str]) -> list[str]:
  """A fifth for `val` by the hash of the stem, but no split empty if there are two of them."""
  rank = {stem: hashlib.sha256(stem.encode()).digest() for stem in stems}
  by_rank = sorted(stems, key=rank.get)
  count = sum(rank[stem][0] < 256 / 5 for stem in stems)
  count = min(max(count, 1), len(stems) - 1)
  chosen = set(by_rank[:count] if split == 'val' else by_rank[count:])
  return [stem for stem in stems if stem in chosen]


def check_present(files: Collection[Path], wanted_by: Path) -> None:
  """Raises `UserError` for files that are missing, as after half a download."""
  there = {
    folder: set(os.listdir(folder)) for folder in {path.parent for path in files} if folder.is_dir()
  }
  missing = [path for path in files if path.name not in there.get(path.parent, ())]
  if missing:
    raise UserError(
      f'{missing[0].parent}: {len(missing)} of the {len(files)} files of {wanted_by} are missing,'
      f' such as {missing[0].name}; expected a whole download'
    )


def lines(path: Path, comment: str | None = None) -> Iterator[tuple[str, str]]:
  """`FILE, line N` and text of each line that is not blank."""
  try:
    text = path.read_text('utf-8-sig')
  except FileNotFoundError:
    raise UserError(f'{path}: no such file; expected one that comes with the data') from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: cannot be read ({error}); expected UTF-8 text') from error
  for number, line in enumerate(text.splitlines(), 1):
    line = line.split(comment)[0].strip() if comment else line.strip()
    if line:
      yield f'{path}, line {number}', line


def check_split(split: str, known: Sequence[str]) -> None:
  if split not in known:
    raise UserError(f"there is no split '{split}'; expected one of {', '.join(known)}")


def check_extras(extras: Sequence[str], info: DatasetInfo, known: Sequence[str]) -> tuple[str, ...]:
  """`data.extras`, if a dataset has them."""
  for extra in extras:
    if extra not in known:
      there = ' and '.join(known) or 'nothing'
      raise UserError(f"data.extras: '{info.name}' has no {extra!r}; expected {there}")
  return tuple(extras)


def variant_of(data_config, known: Collection[str]) -> str:
  """`data.variant`, or the first that is known where that is not set."""
  return data_config.variant or next(iter(known))


def choose_variant(data_config, known: Mapping[str, Any]) -> Any:
  """What `known` holds for `variant_of` it."""
  return known[variant_of(data_config, known)]


def voc_colormap(num_classes: int) -> np.ndarray:
  """uint8 [num_classes, 3]: PASCAL VOC's colours, the bits of the class spread over R, G and B."""
  classes = np.arange(num_classes)[:, None]
  bits = classes >> np.arange(24) & 1  # bit 3k + c of the class is bit 7 - k of channel c
  return sum(bits[:, 3 * k : 3 * k + 3] << 7 - k for k in range(8)).astype(np.uint8)
