"""A dataset of your own: a folder of pictures, a folder of masks, and the names of the classes.

    images/beach.jpg  masks/beach.png  classes.txt  [splits/train.txt  splits/val.txt  ...]

A picture and its mask have the same stem, at any depth below `images/` and `masks/`. Masks are
lossless (PNG): grey values, palette indices or RGB colours.

`classes.txt` says what they mean, one class a line, in one of three forms, with comments after `#`:

    background            background, 0          background, 0, 0, 0
    road                  road, 7                road, 128, 64, 128
    car                   ignore, 255            ignore, 255, 255, 255

Names alone: the first class is the value 0, the next 1, ..., and 255 is ignored. Names with values
or with colours: what is not listed is an error. `ignore` is no class, its pixels count nowhere; it
may come several times, and with a value also among names alone.

`splits/NAME.txt` lists the stems of a split, one a line. Without `splits/`, one picture in five or
so is `val` and the rest `train`, by a hash of the stem, so that a new picture moves no other one.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from seg_jax import IGNORE
from seg_jax.data import files
from seg_jax.data.datasets.base import (
  DatasetInfo,
  FileSource,
  check_split,
  dataset_dir,
  hashed_split,
  lines,
  make_records,
  voc_colormap,
)
from seg_jax.errors import UserError

_FORMS = {0: "'NAME'", 1: "'NAME, VALUE'", 3: "'NAME, R, G, B'"}  # by the count of numbers
_MAX_CLASSES = 254
INFOS = {}  # what it holds is known from its own files alone


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is the name of a file in `splits/`, or without such files train or val."""
  del seed
  root = dataset_dir(data_config)
  info, label_map = read_classes(root / 'classes.txt', _first_masks(root / 'masks'))
  images = files.files_by_stem(root / 'images')
  listings = {path.stem: path for path in sorted((root / 'splits').glob('*.txt'))}
  check_split(split, list(listings) or ['train', 'val'])
  stems = _listed(listings[split], images) if listings else _hashed(split, images)
  images = {stem: images[stem] for stem in stems}
  records = make_records(images, label=(root / 'masks', ''))
  return FileSource(info, records, label_map, root, extras=data_config.extras)


def read_classes(
  path: Path, masks: Iterable[np.ndarray] = ()
) -> tuple[DatasetInfo, files.LabelMap]:
  """What a `classes.txt` tells: the classes, and what they look like in the masks.

  Of `masks`, raw as `files.read_mask` gives them, a few are enough.

  Raises:
    UserError: what is wrong in which line; if there is no such file, what to write into it.
  """
  if not path.exists():
    raise UserError(_how_to_write(path, list(masks)))
  rows = [_parse(place, text) for place, text in lines(path, comment='#')]
  form = next((len(numbers) for _, name, numbers in rows if name != 'ignore'), 0)
  names, colours, meaning = [], [], {}
  for place, name, numbers in rows:
    ignored = name == 'ignore'
    expected = form or 1 if ignored else form
    if len(numbers) != expected:
      raise UserError(
        f'{place}: a line of the form {_FORMS[len(numbers)]}; expected'
        f' {_FORMS[expected]}, as in the others'
      )
    key = (tuple(numbers) if len(numbers) == 3 else numbers[0]) if numbers else len(names)
    if name in names or key in meaning:
      raise UserError(f"{place}: '{name if name in names else key}' for the second time")
    meaning[key] = IGNORE if ignored else len(names)
    if not ignored:
      names.append(name)
      colours.append(key)
  if not 2 <= len(names) <= _MAX_CLASSES:
    raise UserError(
      f'{path}: {len(names)} classes; expected 2 to {_MAX_CLASSES} (the background is one, too)'
    )
  assumed = form == 0 and IGNORE not in meaning
  if assumed:
    meaning[IGNORE] = IGNORE
  palette = np.array(colours, np.uint8) if form == 3 else voc_colormap(len(names))
  return DatasetInfo('folder', tuple(names), palette), files.LabelMap(meaning, assumed)


def _parse(place: str, text: str) -> tuple[str, str, list[int]]:
  """(place, name, numbers) of one line."""
  name, *fields = (field.strip() for field in text.split(','))
  most = 65535 if len(fields) == 1 else 255
  if name and len(fields) in _FORMS and all(field.isdecimal() for field in fields):
    numbers = [int(field) for field in fields]
    if all(number <= most for number in numbers):
      return place, name, numbers
  forms = ', '.join(_FORMS.values())
  raise UserError(f"{place}: '{text}'; expected one of {forms}, numbers from 0 to {most}")


def _first_masks(folder: Path, count: int = 5) -> Iterator[np.ndarray]:
  for path in list(files.files_by_stem(folder).values())[:count]:
    yield files.read_mask(path)


def _how_to_write(path: Path, masks: Sequence[np.ndarray]) -> str:
  """What is missing, with what the first masks hold."""
  held = [
    files.describe(np.concatenate([mask.reshape(-1, *mask.shape[2:]) for mask in same]), limit=20)
    for channels in (2, 3)
    if (same := [mask for mask in masks if mask.ndim == channels])
  ]
  return (
    f'{path}: missing; expected one class a line, as {_FORMS[0]} in the order of the values 0, 1,'
    f' ..., or as {_FORMS[1]}, or as {_FORMS[3]}, and the name "ignore" for what is no class;'
    f' the first {len(masks)} masks hold {", ".join(held)}'
  )


def _listed(listing: Path, images: dict[str, Path]) -> list[str]:
  """The stems in a file of `splits/`."""
  stems = {}
  for place, stem in lines(listing):
    if stem not in images:
      raise UserError(f"{place}: there is no picture '{stem}' in images/; expected a stem a line")
    if stem in stems:
      raise UserError(f"{place}: '{stem}' for the second time")
    stems[stem] = place
  return list(stems)


def _hashed(split: str, images: dict[str, Path]) -> list[str]:
  stems = hashed_split(split, images)
  logging.log_first_n(
    logging.WARNING,
    'no splits/*.txt: %d of %d pictures are val, by a hash of the stem; write splits/train.txt and'
    ' splits/val.txt if neighbours, such as the frames of a video, must not be in both',
    1,
    len(stems) if split == 'val' else len(images) - len(stems),
    len(images),
  )
  return stems
