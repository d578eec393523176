"""What deserves a look: in one record, in a split, and between splits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data.label_map import LabelMap

MIN_SIDE = 32  # pixels; many models shrink a picture 32-fold
MAX_ASPECT = 4
NAMED = 3  # files

Suspicion = tuple[str, str]  # its kind, and a remark


def of_record(seen, class_names: Sequence[str], max_instances: int) -> Iterator[Suspicion]:
  """What one record, as `examine.Seen`, gives by itself."""
  rows, columns = seen.size
  if min(seen.size) < MIN_SIDE or max(seen.size) > MAX_ASPECT * min(seen.size):
    yield 'size', f'{rows} x {columns} (rows x columns)'
  if seen.one_colour:
    yield 'one_colour', 'the whole picture has one colour'
  ignored = seen.histogram[IGNORE] / (rows * columns)
  classes = np.flatnonzero(seen.histogram[:IGNORE])
  if ignored > 0.5:
    yield 'ignored', f'{100 * ignored:.3g} % of the label is ignored'
  if len(classes) == 1:
    yield 'one_class', f'all that is labelled is {class_names[classes[0]]}'
  if seen.orientation >= 5:
    yield 'exif', f'stored on its side (EXIF orientation {seen.orientation}), and turned'
  if seen.mode == 'CMYK':
    yield 'cmyk', 'converted from CMYK to RGB'
  elif seen.mode in ('1', 'L', 'LA') or seen.mode.startswith('I'):
    yield 'grey', 'converted from grey to RGB'
  if seen.areas is not None:
    count, empty = len(seen.areas), int((seen.areas == 0).sum())
    if count > max_instances:
      yield 'many_objects', f'{count} objects, more than data.max_instances = {max_instances}'
    if empty:
      yield 'empty_object', f'{empty} of {count} objects have no pixel'
  if seen.depths is not None and not seen.depths[3]:
    yield 'no_depth', 'no depth is known'


def of_owner(owner: tuple[str, str], split: str) -> Suspicion:
  """A picture that `owner`, split and name, has already."""
  owner_split, name = owner
  if owner_split == split:
    return 'duplicate', f'the same picture as {name}'
  return 'leak', f'the same picture as {name} ({owner_split})'


def of_split(source, split: str, raw_values: Mapping[str, int]) -> Iterator[Suspicion]:
  """What only the whole split shows."""
  official = source.info.num_images.get(split)
  if official and len(source) < official:
    yield (
      'part',
      f'{len(source):,} of the official {official:,} images; a part of the dataset, or half a'
      ' download',
    )
  elif official and len(source) > official:
    yield 'too_many', f'{len(source):,} images, and officially {official:,}'
  if hasattr(source, 'label_map') and (remark := off_by_one(raw_values, source.label_map)):
    yield 'off_by_one', remark
  records = getattr(source, 'records', ())
  if isinstance(records, list) and (lone := lone_masks(records)):  # others are read to be listed
    names = ', '.join(map(str, lone[:NAMED])) + (', ...' if len(lone) > NAMED else '')
    yield 'masks_without_a_picture', f'{len(lone):,}: {names}'


def off_by_one(raw_values: Mapping[str, int], label_map: LabelMap) -> str:
  """What is wrong with masks whose 0 should be ignored and whose classes should count from 1."""
  keys = label_map.classes
  if label_map.by_colour or keys.get(0) != IGNORE or keys.get(1) != 0:
    return ''
  last = max(key for key, value in keys.items() if value != IGNORE)
  found = {int(value) for value in raw_values if value.isdecimal()}  # no colours
  expected = f'expected 0 = ignored and the classes from 1 to {last}, as the owners ship them'
  foreign = 255 in found and 255 not in keys
  if found - {255} == set(range(last)) or (foreign and 0 in found and last not in found):
    return (
      f'the masks hold 0 to {max(found - {255})}{" and 255" if foreign else ""}, never {last}: 1'
      f' has been subtracted already (reduce_zero_label); {expected}'
    )
  if foreign and 0 not in found:
    return f'the masks hold 255, never 0, which has become 255; {expected}'
  return ''


def lone_masks(records: Sequence[Mapping]) -> list[Path]:
  """Masks without a picture, in the folders of those that have one.

  How the names of a picture and of its mask differ is known from the first pair of a folder.
  """
  pairs = {}
  for record in records:
    image, mask = record['image'], record['label']
    if isinstance(image, Path) and isinstance(mask, Path):
      pairs.setdefault((image.parent, mask.parent), (image.stem, mask.stem, mask.suffix))
  lone = []
  for (image_folder, mask_folder), (image, mask, suffix) in pairs.items():
    differ = (k for k, (a, b) in enumerate(zip(image, mask, strict=False)) if a != b)
    common = next(differ, min(len(image), len(mask)))
    there = {os.path.splitext(name)[0] for name in os.listdir(image_folder)}
    for name in sorted(os.listdir(mask_folder)):
      if common and name.endswith(mask[common:] + suffix) and not name.startswith('.'):
        stem = name.removesuffix(mask[common:] + suffix)
        if stem + image[common:] not in there:
          lone.append(mask_folder / name)
  return lone


def add_untrained_classes(report: dict, trained: dict) -> None:
  """Classes of this split that the training split, whose report is `trained`, never shows."""
  for name, row in report['classes'].items():
    if row['pixels'] and not trained['classes'][name]['pixels']:
      remark = f'{name}: in {row["images"]} images here, in none of {trained["split"]}'
      report['suspicious']['untrained_class'].append(remark)
