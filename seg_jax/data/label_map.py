"""What a mask's pixels mean: one table from raw values or colours to classes, applied in one place.

Whatever it does not know is a `UserError` that names the file, the values and how many there are.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from seg_jax import IGNORE
from seg_jax.data.files import File, read_mask
from seg_jax.errors import UserError

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LabelMap:
  """What a mask's pixels mean: grey value, palette index or (R, G, B) -> class, or 255 = ignore.

  Keys are all numbers (0 to 65535) or all colours; what is not a key is an error in the mask.
  Classes are below 254.
  """

  classes: Mapping[int | Colour, int]
  # True: nobody said that 255 is "ignore". A mask of nothing but 0 and 255 is then refused, for its
  # 255 is most often a class.
  ignore_is_assumed: bool = False

  @property
  def by_colour(self) -> bool:
    return isinstance(next(iter(self.classes)), tuple)


def read_label(path: File, label_map: LabelMap) -> np.ndarray:
  """uint8 [H, W] of classes and 255 = ignore: `to_classes` of `read_mask`."""
  return to_classes(read_mask(path), label_map, str(path))


def to_classes(raw: np.ndarray, label_map: LabelMap, place: str) -> np.ndarray:
  """uint8 [H, W] of classes and 255 = ignore, from raw values [H, W] or colours [H, W, 3].

  Raises a `UserError` that names `place` if there are colours where values are expected or the
  other way round, or anything that `label_map` does not know.
  """
  coloured = raw.ndim == 3
  if coloured and not label_map.by_colour:
    raise UserError(
      f'{place}: a mask in RGB colours, such as those made to be looked at; expected one channel'
      ' of class values'
      " (or, in a dataset of your own, a line 'NAME, R, G, B' for each class in classes.txt)"
    )
  if label_map.by_colour and not coloured:
    raise UserError(
      f'{place}: a mask of one channel, grey or palette; expected RGB, as the classes are given by'
      " colour (or, in a dataset of your own, a line 'NAME, VALUE' for each class in classes.txt)"
    )
  codes = _colour_codes(raw) if coloured else raw
  table = _lookup_table(tuple(label_map.classes.items()))
  # OpenCV's table of 256 is three times as fast.
  label = cv2.LUT(codes, table[:256]) if codes.dtype == np.uint8 else np.take(table, codes)
  unknown = label == _UNKNOWN
  if unknown.any():
    raise UserError(
      f'{place}: {describe(raw[unknown])} not known; expected {_listing(label_map.classes)}'
      f'{_counted_from_1(raw[unknown], label_map.classes)}'
    )
  ignored = label == IGNORE
  if label_map.ignore_is_assumed and ignored.any() and (ignored | (label == 0)).all():
    raise UserError(
      f'{place}: a mask of the values 0 and 255 only; is 255 a class or to be ignored? Say so in'
      " classes.txt: either a value for each class ('NAME, 0' and 'NAME, 255'), or one more line"
      " 'ignore, 255'"
    )
  return label


def _counted_from_1(unknown: np.ndarray, classes: Mapping) -> str:
  """A hint where classes that count from 0 are exceeded by one."""
  if unknown.ndim == 2 or classes.get(0, IGNORE) == IGNORE:
    return ''
  last = max(key for key in classes if key != IGNORE)
  return '; are the classes counted from 1?' if (unknown == last + 1).all() else ''


def describe(pixels: np.ndarray, limit: int = 4) -> str:
  """The commonest of raw `pixels` [N] or [N, 3], as `value 7 (12 pixels), value 9 (1 pixel)`."""
  kind = 'value' if pixels.ndim == 1 else 'colour'
  counts = value_counts(pixels[None])
  commonest = sorted(counts, key=lambda text: -counts[text])
  texts = [
    f'{kind} {text} ({counts[text]} pixel{"s" if counts[text] > 1 else ""})'
    for text in commonest[:limit]
  ]
  more = len(counts) - limit
  return ', '.join(texts) + (
    f' and {more} more {kind}{"s" if more > 1 else ""}' if more > 0 else ''
  )


def value_counts(mask: np.ndarray) -> dict[str, int]:
  """The pixels of each value of what `read_mask` gives, or of each colour as `R,G,B`."""
  values, counts = np.unique(_colour_codes(mask) if mask.ndim == 3 else mask, return_counts=True)
  if mask.ndim == 3:
    values = np.stack([values >> 16, values >> 8 & 255, values & 255], -1)
  return dict(zip(map(_text, values), counts.tolist(), strict=True))


def meanings(label_map: LabelMap, class_names: Sequence[str]) -> dict[str, str]:
  """The class, or `ignored`, of each value or colour, which are written as in `value_counts`."""
  return {
    _text(key): 'ignored' if value == IGNORE else class_names[value]
    for key, value in label_map.classes.items()
  }


_UNKNOWN = 254


@functools.lru_cache(maxsize=8)
def _lookup_table(items: tuple) -> np.ndarray:
  """uint8 table from each 16-bit value, or 24-bit colour code, to its class."""
  keys = np.array([key for key, _ in items])
  coloured = keys.ndim == 2
  table = np.full(1 << 24 if coloured else 1 << 16, _UNKNOWN, np.uint8)
  table[_colour_codes(keys) if coloured else keys] = [value for _, value in items]
  return table


def _colour_codes(colours: np.ndarray) -> np.ndarray:
  colours = colours.astype(np.int32)
  return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def _text(value) -> str:
  return ','.join(map(str, np.atleast_1d(value)))


def _listing(keys: Mapping, limit: int = 12) -> str:
  known = sorted(keys)
  texts = [_text(key) for key in known]
  if len(known) > 2 and not isinstance(known[0], tuple) and known[-2] - known[0] == len(known) - 2:
    texts = [f'{known[0]} to {known[-2]}', texts[-1]]
  return ' or '.join(texts[:limit]) + (' ...' if len(texts) > limit else '')
