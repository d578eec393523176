"""`classes.txt`: the classes of a folder of one's own, and what masks that do not fit may be.

`folder.py` says how it is written.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files
from seg_jax.data.datasets.base import DatasetInfo, lines, voc_colormap
from seg_jax.data.label_map import LabelMap, describe, meanings, value_counts
from seg_jax.errors import UserError

_FORMS = {0: "'NAME'", 1: "'NAME, VALUE'", 3: "'NAME, R, G, B'"}  # by the count of numbers
MAX_CLASSES = 254


def read_classes(path: Path, masks: Iterable[np.ndarray] = ()) -> tuple[DatasetInfo, LabelMap]:
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
  if not 2 <= len(names) <= MAX_CLASSES:
    raise UserError(
      f'{path}: {len(names)} classes; expected 2 to {MAX_CLASSES} (the background is one, too)'
    )
  assumed = form == 0 and IGNORE not in meaning
  if assumed:
    meaning[IGNORE] = IGNORE
  palette = np.array(colours, np.uint8) if form == 3 else voc_colormap(len(names))
  return DatasetInfo('folder', tuple(names), palette), LabelMap(meaning, assumed)


def _parse(place: str, text: str) -> tuple[str, str, list[int]]:
  """(place, name, numbers) of one line."""
  name, *fields = (field.strip() for field in text.split(','))
  if name == '__ignore__' and not fields:  # the first line of LabelMe's own lists
    return place, 'ignore', [IGNORE]
  most = 65535 if len(fields) == 1 else 255
  if name and len(fields) in _FORMS and all(field.isdecimal() for field in fields):
    numbers = [int(field) for field in fields]
    if all(number <= most for number in numbers):
      return place, name, numbers
  forms = ', '.join(_FORMS.values())
  raise UserError(f"{place}: '{text}'; expected one of {forms}, numbers from 0 to {most}")


def _how_to_write(path: Path, masks: Sequence[np.ndarray]) -> str:
  """What is missing, with what the first masks hold."""
  held = [
    describe(np.concatenate([mask.reshape(-1, *mask.shape[2:]) for mask in same]), limit=20)
    for channels in (2, 3)
    if (same := [mask for mask in masks if mask.ndim == channels])
  ]
  return (
    f'{path}: missing; expected one class a line, as {_FORMS[0]} in the order of the values 0, 1,'
    f' ..., or as {_FORMS[1]}, or as {_FORMS[3]}, and the name "ignore" for what is no class;'
    f' the first {len(masks)} masks hold {", ".join(held)}'
  )


def suspicion(mask: Path, image: Path, info: DatasetInfo, label_map: LabelMap) -> str:
  """What may be behind a mask that cannot be used, as the end of a message; '' for no idea."""
  if hint := swapped(mask, image):
    return hint
  with contextlib.suppress(UserError):
    raw = files.read_mask(mask)
    names = meanings(label_map, info.class_names)  # by what stands in the mask, as text
    if raw.ndim == 3:
      return '' if label_map.by_colour else _palette_as_rgb(raw, names)
    if not label_map.by_colour:
      return _other_values(np.unique(raw).tolist(), {int(key): names[key] for key in names})
  return ''


def swapped(mask: Path, image: Path) -> str:
  """The same, where a mask has more colours than its picture."""
  with contextlib.suppress(UserError):
    colours = _num_colours(mask)
    if colours > 64 and colours > 4 * _num_colours(image):
      return f'; {mask.name} looks like a photograph: are pictures and masks swapped?'
  return ''


def _num_colours(path: Path) -> int:
  return len(value_counts(files.read_image(path)))


def _palette_as_rgb(raw: np.ndarray, names: Mapping[str, str]) -> str:
  palette = voc_colormap(256).tolist()
  value_of = {','.join(map(str, colour)): str(value) for value, colour in enumerate(palette)}
  values = [value_of.get(colour) for colour in value_counts(raw)]
  if not names.keys() >= set(values):
    return ''
  colour_of = {value: colour for colour, value in value_of.items()}
  return (
    f'; its colours are those of the VOC palette for {", ".join(sorted(values, key=int))}: a'
    f' palette mask that was saved as RGB? Then classes.txt needs'
    f' {_told({colour_of[v]: name for v, name in names.items() if v in colour_of})}'
  )


def _other_values(values: Sequence[int], names: Mapping[int, str]) -> str:
  """Of a mask with values that `names` does not have."""
  unknown = set(values) - names.keys()
  classes = [name for name in names.values() if name != 'ignored']
  if not unknown:
    return ''
  for factor in (257, 256):
    if all(value % factor == 0 and value // factor in names for value in values):
      scaled = {value * factor: name for value, name in names.items() if value * factor < 1 << 16}
      return f'; 8-bit values times {factor}, as in 16 bits? Then classes.txt needs {_told(scaled)}'
  if unknown == {254}:
    return (
      '; 254 is 255 less 1: were the values reduced by one (reduce_zero_label)? Then classes.txt'
      " needs 'ignore, 254', and 'ignore, 255' for what was 0, and no name for it"
    )
  if unknown == {len(classes)} and list(names)[: len(classes)] == [*range(len(classes))]:
    counted = dict(enumerate(classes, 1)) | ({0: 'ignored'} if 0 in values else {})
    return f'; if they count from 1, classes.txt needs {_told(counted)}'
  thousands = {value // 1000 for value in unknown}
  if len(values) > max(8, 2 * len(classes)) or (0 not in thousands and thousands <= names.keys()):
    return (
      f'; {len(values)} values for {len(classes)} classes: does the mask number objects (instance'
      ' ids)? Expected one value for each class'
    )
  return ''


def _told(names: Mapping, limit: int = 6) -> str:
  """The lines of a `classes.txt`."""
  told = [
    f"'{'ignore' if name == 'ignored' else name}, {str(key).replace(',', ', ')}'"
    for key, name in names.items()
  ]
  return ', '.join(told[:limit]) + (', ...' if len(told) > limit else '')
