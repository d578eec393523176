"""A dataset of your own: pictures, what is in them, and the names of the classes.

    images/beach.jpg  masks/beach.png  classes.txt  [splits/train.txt  splits/val.txt  ...]

A picture and its mask have the same stem, at any depth below `images/` and `masks/`, or below
`img_dir/` and `ann_dir/`, as MMSegmentation calls them. Masks are lossless (PNG): grey values,
palette indices or RGB colours.

`classes.txt` says what they mean, one class a line, in one of three forms, with comments after `#`:

    background            background, 0          background, 0, 0, 0
    road                  road, 7                road, 128, 64, 128
    car                   ignore, 255            ignore, 255, 255, 255

Names alone: the first class is the value 0, the next 1, ..., and 255 is ignored. Names with values
or with colours: what is not listed is an error. `ignore` is no class, its pixels count nowhere; it
may come several times, and with a value also among names alone.

Instead of `masks/` there may be

- `annotations.json`, of COCO's form, or `annotations/train.json`, `annotations/val.json`, ... (or
  `annotations/instances_train.json`, ...), which are the splits then. `file_name` is a path below
  `images/`, or below `images/SPLIT/`. Without `classes.txt` the classes are `background` and the
  categories by their ids. Pictures that `annotations.json` does not list are an error.
- LabelMe's `x.json` beside each `images/x.jpg`, or in `annotations/`. Labels are the names in
  `classes.txt`; pictures without a JSON file are left out.

Shapes are drawn in the order of the file. What none of them covers is `background` (LabelMe's
`_background_`), or ignored, where `classes.txt` has no such class; `ignore` and `__ignore__` are
ignored. `classes.txt` has names here, or names with colours. Both kinds have instances.

`splits/NAME.txt` lists the stems of a split, one a line. Without `splits/`, where all pictures lie
in `images/train`, `images/val` and `images/test`, or some of these, they are the splits. Otherwise
one picture in five or so is `val` and the rest `train`, by a hash of the stem, so that a new
picture moves no other one.

`config.data.channels` and `bits` are for pictures with other bands; see `seg_jax.data.bands`.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from seg_jax import IGNORE
from seg_jax.data import annotations, bands, files, labelme
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_split,
  dataset_dir,
  hashed_split,
  lines,
  make_records,
  voc_colormap,
)
from seg_jax.data.datasets.classes import MAX_CLASSES, read_classes, suspicion, swapped
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

INFOS = {}  # what it holds is known from its own files alone
_SPLIT_FOLDERS = {'train', 'val', 'test'}
_BACKGROUND, _IGNORED = ('background', '_background_'), ('ignore', '__ignore__')

Pictures = Mapping[str, Path]  # by stem
Items = dict[str, tuple]  # what is drawn of a picture, by stem


class MaskSource(FileSource):
  """A mask that cannot be used is looked at once more, for what may be behind it."""

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    try:
      return super().__getitem__(index)
    except UserError as error:
      record = self.records[index]
      hint = suspicion(record['label'], record['image'], self.info, self.label_map)
      raise UserError(f'{error}{hint}') from error


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is a file in `splits/`, a folder in `images/`, a COCO file, or else train or val."""
  del seed
  root = dataset_dir(data_config)
  names = ('img_dir', 'ann_dir') if (root / 'img_dir').is_dir() else ('images', 'masks')
  folder, masks = (root / name for name in names)
  images = files.files_by_stem(folder)
  arguments = {'root': root, 'extras': data_config.extras, **bands.readers(data_config)}
  if masks.is_dir():
    info, label_map = read_classes(root / 'classes.txt', _first_masks(masks, images))
    images = {stem: images[stem] for stem in _stems(split, root, images)}
    records = make_records(images, label=(masks, ''))
    return MaskSource(info, records, label_map, **arguments)
  if (root / 'annotations.json').exists():
    read_shapes, (info, items) = annotations.coco_shapes, _coco(root, split, images)
  elif jsons := _labelme_files(root, folder, images):
    read_shapes, (info, items) = labelme.labelme_shapes, _labelme(root, split, images, jsons)
  else:
    read_shapes, (info, items) = annotations.coco_shapes, _coco_splits(root, split, images, masks)
  return _drawn(info, images, items, read_shapes, arguments)


def _first_masks(folder: Path, images: Pictures, count: int = 5) -> Iterator[np.ndarray]:
  for stem, path in list(files.files_by_stem(folder).items())[:count]:
    try:
      yield files.read_mask(path)
    except UserError as error:
      hint = swapped(path, images[stem]) if stem in images else ''
      raise UserError(f'{error}{hint}') from error


def _drawn(
  info: DatasetInfo, images: Pictures, items: Items, read_shapes: Callable, arguments: Mapping
) -> FileSource:
  """The source of what `read_shapes` reads."""
  classes = {name: value for value, name in enumerate(info.class_names)}
  background = [classes[name] for name in _BACKGROUND if name in classes]
  if background:
    classes |= dict.fromkeys(_BACKGROUND, background[0])
  else:
    logging.log_first_n(
      logging.WARNING, "no class is called 'background': what no shape covers is ignored", 1
    )
  classes |= dict.fromkeys(_IGNORED, IGNORE)
  things = tuple(value for value in range(info.num_classes) if value not in background)
  reading = {'read_shapes': read_shapes, 'classes': classes}
  return FileSource(
    dataclasses.replace(info, things=things),
    [{'image': images[stem], 'label': item, 'instances': item} for stem, item in items.items()],
    LabelMap({value: value for value in (*range(info.num_classes), IGNORE)}),
    read_raw=functools.partial(annotations.read_raw, **reading),
    read_instances=functools.partial(annotations.read_instances, **reading),
    **arguments,
  )


def _coco(root: Path, split: str, images: Pictures) -> tuple[DatasetInfo, Items]:
  """Of `annotations.json`."""
  path = root / 'annotations.json'
  info, items = _coco_info(root, [path]), annotations.coco_items(path, images, split)
  return info, _picked(_stems(split, root, images), items, images, f"entry in 'images' of {path}")


def _coco_splits(
  root: Path, split: str, images: Pictures, masks: Path
) -> tuple[DatasetInfo, Items]:
  """Of `annotations/SPLIT.json`."""
  paths = sorted((root / 'annotations').glob('*.json'))
  if not paths:
    raise UserError(
      f'{root}: has no {masks.name}/; expected that, or annotations.json or annotations/train.json,'
      " ... of COCO's form, or LabelMe's files beside the pictures"
    )
  info = _coco_info(root, paths)
  by_split = {path.stem.removeprefix('instances_'): path for path in paths}
  check_split(split, list(by_split))
  if (root / 'splits').is_dir():
    raise UserError(f'{root / "splits"}: expected none, as annotations/*.json are the splits')
  return info, annotations.coco_items(by_split[split], images, split)


def _coco_info(root: Path, paths: Sequence[Path]) -> DatasetInfo:
  """Of `classes.txt`, or else of the categories, which all files have to share."""
  first, *others = (annotations.coco_categories(path) for path in paths)
  if (root / 'classes.txt').exists():
    return _named_classes(root)
  for path, categories in zip(paths[1:], others, strict=True):
    if categories != first:
      raise UserError(f"{path}: other 'categories' than {paths[0]}; expected the same")
  special = (*_BACKGROUND, *_IGNORED)
  names = ('background', *(name for name in first.values() if name not in special))
  if not 2 <= len(names) <= MAX_CLASSES:
    raise UserError(f"{paths[0]}: {len(first)} 'categories'; expected 1 to {MAX_CLASSES - 1}")
  return DatasetInfo('folder', names, voc_colormap(len(names)))


def _named_classes(root: Path) -> DatasetInfo:
  """Of `classes.txt`, where there are no values that it could tell."""
  path = root / 'classes.txt'
  info, label_map = read_classes(path)
  if not label_map.by_colour and label_map.classes.keys() - {IGNORE} != {*range(info.num_classes)}:
    raise UserError(f"{path}: JSON files hold no values; expected 'NAME' or 'NAME, R, G, B'")
  return info


def _labelme_files(root: Path, folder: Path, images: Pictures) -> Pictures:
  """{stem: JSON file} of LabelMe's, in `annotations/` or beside the pictures."""
  for place in (root / 'annotations', folder):
    found = annotations.json_by_stem(place)
    if any(stem in images for stem in found):
      for stem, path in found.items():
        if stem not in images:
          raise UserError(f"{path}: there is no picture '{stem}' in {folder}")
      return found
  return {}


def _labelme(
  root: Path, split: str, images: Pictures, jsons: Pictures
) -> tuple[DatasetInfo, Items]:
  path = root / 'classes.txt'
  if not path.exists():
    labels = labelme.count_labels(jsons.values())
    told = ', '.join(f"'{name}' ({count} shapes)" for name, count in labels.items())
    raise UserError(
      f"{path}: missing; expected the names of the classes, one a line, '_background_' first;"
      f' the {len(jsons)} JSON files have the labels {told}'
    )
  pool = images
  if not (root / 'splits').is_dir() and len(jsons) < len(images):
    logging.log_first_n(
      logging.WARNING, '%d pictures without a JSON file are left out', 1, len(images) - len(jsons)
    )
    pool = {stem: path for stem, path in images.items() if stem in jsons}
  items = {stem: (path, images[stem]) for stem, path in jsons.items()}
  return _named_classes(root), _picked(_stems(split, root, pool), items, images, 'JSON file')


def _picked(stems: Sequence[str], items: Items, images: Pictures, what: str) -> Items:
  missing = [stem for stem in stems if stem not in items]
  if missing:
    more = f'; nor have {len(missing) - 1} more' if len(missing) > 1 else ''
    raise UserError(f'{images[missing[0]]}: has no {what}{more}')
  return {stem: items[stem] for stem in stems}


def _stems(split: str, root: Path, images: Pictures) -> list[str]:
  """The pictures of a split."""
  listings = {path.stem: path for path in sorted((root / 'splits').glob('*.txt'))}
  folders = {stem.partition('/')[0] if '/' in stem else '' for stem in images}
  by_folder = folders <= _SPLIT_FOLDERS
  check_split(split, list(listings) or (sorted(folders) if by_folder else ['train', 'val']))
  if listings:
    return _listed(listings[split], images)
  if by_folder:
    return [stem for stem in images if stem.startswith(f'{split}/')]
  return _hashed(split, images)


def _listed(listing: Path, images: Pictures) -> list[str]:
  """The stems in a file of `splits/`."""
  stems = {}
  for place, stem in lines(listing):
    stem = unicodedata.normalize('NFC', stem)
    if stem not in images:
      raise UserError(f"{place}: there is no picture '{stem}' in images/; expected a stem a line")
    if stem in stems:
      raise UserError(f"{place}: '{stem}' for the second time")
    stems[stem] = place
  return list(stems)


def _hashed(split: str, images: Pictures) -> list[str]:
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
