"""JSON annotations of a folder of one's own: COCO's here, LabelMe's in `labelme.py`.

Both become `Shape`s, drawn in their order, later ones on top. `classes` is {name: class}
throughout; what no shape covers is of the class `background`, and ignored if there is none.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.polygons import segmentation_mask
from seg_jax.errors import UserError


class Shape(NamedTuple):
  """A part of an object, or all of it."""

  value: int  # its class; 255 = ignore
  mask: np.ndarray  # bool [H, W]
  is_crowd: bool
  group: Any  # shapes of a class that have the same are one object; None: an object by itself


Shapes = tuple[tuple[int, int], Iterator[Shape]]  # of a picture of so many rows and columns


def read_raw(item, read_shapes: Callable, classes: Mapping[str, int]) -> np.ndarray:
  """uint8 [H, W] of classes and 255 = ignore."""
  size, shapes = read_shapes(item, classes)
  raw = np.full(size, classes.get('background', IGNORE), np.uint8)
  for shape in shapes:
    raw[shape.mask] = shape.value
  return raw


def read_instances(
  item, label: np.ndarray, read_shapes: Callable, classes: Mapping[str, int]
) -> instances.Instances:
  """Every object of a class but the background, whole, also where another one lies on it."""
  del label
  size, shapes = read_shapes(item, classes)
  objects = {}
  for number, shape in enumerate(shapes):
    if shape.value not in (IGNORE, classes.get('background')):
      key = number if shape.group is None else (shape.value, str(shape.group))
      _, mask = objects.get(key, (None, False))
      objects[key] = (shape.value, shape.is_crowd), mask | shape.mask
  masks = [mask for _, mask in objects.values()]
  return instances.from_masks(masks, [row for row, _ in objects.values()], size)


def coco_shapes(item: tuple, classes: Mapping[str, int]) -> Shapes:
  """Of an item of `coco_items`."""
  _, size, annotations = item

  def shapes():
    for place, name, is_crowd, segmentation in annotations:
      value = class_of(place, name, classes)
      try:
        mask = segmentation_mask(segmentation, *size)
      except ValueError as error:
        raise UserError(f'{place}: {error}') from error
      yield Shape(value, mask, is_crowd, None)

  return size, shapes()


def coco_categories(path: Path) -> dict[int, str]:
  """{id: name} of a COCO file, by id."""
  content, names = load(path), {}
  if isinstance(content, dict) and 'shapes' in content:
    raise UserError(f'{path}: a LabelMe file of no picture in images/; expected the same stem')
  for i, row in enumerate(get(path, content, 'categories', list)):
    place = f'{path}, categories[{i}]'
    number, name = get(place, row, 'id', int), get(place, row, 'name', str).strip()
    if number in names or name in names.values():
      raise UserError(f"{place}: id {number} or name '{name}' for the second time")
    names[number] = name
  return dict(sorted(names.items()))


def coco_items(path: Path, images: Mapping[str, Path], split: str) -> dict[str, tuple]:
  """{stem: (place, size, objects)} of all pictures that a COCO file lists.

  Their `file_name` is a path below `images/`, or below `images/SPLIT/`.
  """
  content, categories = load(path), coco_categories(path)
  stems, items = {}, {}
  for i, row in enumerate(get(path, content, 'images', list)):
    place = f'{path}, images[{i}]'
    number, name = get(place, row, 'id', int), get(place, row, 'file_name', str)
    place = f"{path}, image {number} '{name}'"
    stem = files.stem_of(name.replace('\\', '/').removeprefix('./').removeprefix('images/'))
    stem = stem if stem in images else f'{split}/{stem}'
    if stem not in images:
      raise UserError(f'{place}: there is no such picture in images/')
    if number in stems or stem in items:
      raise UserError(f'{place}: for the second time')
    size = check_size(place, *(get(place, row, key, int) for key in ('height', 'width')))
    stems[number], items[stem] = stem, (place, size, [])
  for i, row in enumerate(get(path, content, 'annotations', list)):
    place = f'{path}, annotation {get(f"{path}, annotations[{i}]", row, "id", int)}'
    image, category = (get(place, row, key, int) for key in ('image_id', 'category_id'))
    if image not in stems:
      raise UserError(f"{place}: image_id is {image}, which is not in 'images'")
    if category not in categories:
      known = ', '.join(map(str, categories))
      raise UserError(f"{place}: category_id is {category}; expected one of 'categories': {known}")
    segmentation = get(place, row, 'segmentation', (list, dict))
    is_crowd = bool(row.get('iscrowd', 0))
    items[stems[image]][2].append((place, categories[category], is_crowd, segmentation))
  return items


def class_of(place: str, name: str, classes: Mapping[str, int]) -> int:
  """The class of a name in a JSON file."""
  if name not in classes:
    known = ', '.join(sorted(classes, key=classes.get))
    raise UserError(f"{place}: '{name}' is not in classes.txt; expected one of {known}")
  return classes[name]


def check_size(place, rows: int | None, columns: int | None) -> tuple[int, int]:
  """Rows and columns, if a picture can have them."""
  good = all(type(length) is int and length > 0 for length in (rows, columns))
  if not good or rows * columns > files.MAX_PIXELS:
    raise UserError(f'{place}: {rows} x {columns} pixels; expected the size of the picture')
  return rows, columns


def json_by_stem(folder: Path) -> dict[str, Path]:
  """{stem: file} of the JSON files at any depth below `folder`."""
  found = sorted(path for path in folder.rglob('*') if path.suffix.lower() == '.json')
  return {files.stem_of(path.relative_to(folder).as_posix()): path for path in found}


def load(path: Path) -> Any:
  """The content of a JSON file."""
  try:
    return _parsed(path, path.stat().st_mtime_ns)
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path}: cannot be read ({error}); expected JSON') from error


@functools.lru_cache(maxsize=2)  # COCO's files for train and val are both asked for categories
def _parsed(path: Path, modified: int) -> Any:
  del modified
  return json.loads(path.read_bytes())


_KINDS = {list: 'a list', int: 'a whole number', str: 'text', (list, dict): 'polygons or runs'}


def get(place, content: Any, key: str, kind: Any) -> Any:
  """`content[key]` of a JSON object, if it is there and of its kind."""
  value = content.get(key) if isinstance(content, dict) else None
  if not isinstance(value, kind) or isinstance(value, bool):
    raise UserError(f"{place}: '{key}' is {value!r:.60}; expected {_KINDS[kind]}")
  return value
