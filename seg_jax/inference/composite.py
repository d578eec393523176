"""Pictures put together by what a model sees in them.

A virtual background (another picture, a colour, or a blur, behind what is in front) and a virtual
try-on (another colour or texture for one class, in the same light). Pictures are uint8 [H, W, 3]
RGB. An alpha is float32 [H, W]: the share of each pixel that is in front, or painted; it is a
probability, or a mask softened by `soften`. Where it is 0 or 1 nothing is mixed.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ImageColor

from seg_jax.data import files
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.errors import UserError, nearest

_BACKGROUND = ('background', '_background_')  # what the folders of users call it


def blend(front: np.ndarray, behind: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """alpha front + (1 - alpha) behind, rounded."""
  return cv2.blendLinear(front, behind, alpha, 1 - alpha)


def soften(mask: np.ndarray, feather: float) -> np.ndarray:
  """The alpha of a mask bool [H, W], its edges a Gaussian's of `feather` pixels; hard where 0."""
  alpha = mask.astype(np.float32)
  return cv2.GaussianBlur(alpha, (0, 0), feather) if feather else alpha


def blurred(image: np.ndarray, alpha: np.ndarray, deviation: float) -> np.ndarray:
  """What is behind, blurred by a Gaussian of `deviation` pixels, also where it is hidden.

  Each pixel counts 1 - alpha, and sums are divided by the sums of that, so that no colour of what
  is in front spreads into what is behind. Black where nothing is behind far and wide.
  """
  share = (1 - alpha)[..., None]
  sums = np.concatenate([image * share, share], -1)
  shrink = max(1, int(deviation / 4))  # a wide blur is that of a small copy
  rows, columns = (math.ceil(n / shrink) for n in alpha.shape)
  if shrink > 1:
    sums = cv2.resize(sums, (columns, rows), interpolation=cv2.INTER_AREA)
  sums = cv2.GaussianBlur(sums, (0, 0), deviation / shrink)
  if shrink > 1:
    sums = cv2.resize(sums, alpha.shape[::-1], interpolation=cv2.INTER_LINEAR)
  return np.rint(sums[..., :3] / np.maximum(sums[..., 3:], 1e-6)).astype(np.uint8)


def cover(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The middle of `picture`, as much of it as fills `size` (rows, columns) undistorted."""
  scale = max(wanted / there for wanted, there in zip(size, picture.shape, strict=False))
  middle = []
  for wanted, there in zip(size, picture.shape, strict=False):
    taken = min(there, max(1, round(wanted / scale)))
    middle.append(slice((there - taken) // 2, (there - taken) // 2 + taken))
  smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  return cv2.resize(picture[tuple(middle)], size[::-1], interpolation=smooth)


def tile(texture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """`texture` side by side over `size` (rows, columns); one that is larger is shrunk into it."""
  scale = min(1, *(wanted / there for wanted, there in zip(size, texture.shape, strict=False)))
  if scale < 1:
    shrunk = [max(1, round(scale * n)) for n in texture.shape[:2]]
    texture = cv2.resize(texture, shrunk[::-1], interpolation=cv2.INTER_AREA)
  times = [-(-wanted // there) for wanted, there in zip(size, texture.shape, strict=False)]
  return np.tile(texture, (*times, 1))[: size[0], : size[1]]


def recolour(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
  """`image` with its part `alpha` in `colour` uint8 [3], in the light and shade that lie on it.

  Colours are replaced by lightness, in CIELAB: the mean over the part becomes `colour`, others its
  shades towards black and white, brighter where they were brighter. For a darker colour lightness
  is multiplied; for a brighter one it is shifted, which leaves the noise of dark pixels as it is.
  """
  if not alpha.any():
    return image
  lightness = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0]
  shades = _shades(colour, np.average(lightness, weights=alpha) / 2.55)
  return blend(shades[lightness], image, alpha)


def _shades(colour: np.ndarray, usual: float) -> np.ndarray:
  """uint8 [256, 3]: what each lightness becomes, 0 to 255 as OpenCV has it, `usual` of 100."""
  (((target, *chroma),),) = cv2.cvtColor(np.float32(colour[None, None]) / 255, cv2.COLOR_RGB2LAB)
  lightness = np.arange(256) / 2.55
  if target <= usual:
    lightness *= target / max(usual, 1e-6)
  else:
    lightness = np.minimum(lightness + target - usual, 100)
  # From the colour's chroma at its own lightness to none in black and in white.
  full = np.minimum(
    lightness / max(target, 1e-6), (100 - lightness) / max(100 - target, 1e-6)
  ).clip(0, 1)
  lab = np.stack([lightness, *(full * c for c in chroma)], -1).astype(np.float32)
  rgb = cv2.cvtColor(lab[None], cv2.COLOR_LAB2RGB)[0]
  return np.rint(255 * rgb.clip(0, 1)).astype(np.uint8)


def retexture(image: np.ndarray, alpha: np.ndarray, texture: np.ndarray) -> np.ndarray:
  """`image` with `texture`, of its size, on its part `alpha`, in the light and shade of the part.

  The texture's values times the grey value of the picture, over its mean on the part; at most
  twice as bright.
  """
  if not alpha.any():
    return image
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
  light = np.minimum(grey / max(np.average(grey, weights=alpha), 1), 2)[..., None]
  painted = np.rint(np.minimum(texture * light, 255)).astype(np.uint8)
  return blend(painted, image, alpha)


class Step(NamedTuple):
  """One thing to do to a picture: `apply(image, alpha)`, with the alpha of `classes` together."""

  classes: tuple[int, ...]
  apply: Callable[[np.ndarray, np.ndarray], np.ndarray]


def steps(options, info: DatasetInfo) -> list[Step]:
  """What `config.inference` asks for, one after the other; none by default.

  Raises:
    UserError: a class that `info` does not have, or a file that cannot be read.
  """
  found = []
  if options.repaint:
    classes = _classes('inference.repaint', options.repaint, info)
    found.append(Step(classes, _painting(_read('inference.paint', options.paint))))
  if options.background:
    classes = _foreground(options.foreground, info)
    found.append(Step(classes, _replacing(options.background, options.blur)))
  return found


def _painting(paint):
  if paint.ndim == 1:
    return functools.partial(recolour, colour=paint)
  tiled = functools.lru_cache(maxsize=1)(lambda *size: tile(paint, size))
  return lambda image, alpha: retexture(image, alpha, tiled(*alpha.shape))


def _replacing(background, blur):
  if background == 'blur':
    return lambda image, alpha: blend(
      image, blurred(image, alpha, blur * math.hypot(*alpha.shape)), alpha
    )
  paint = _read('inference.background', background, "'blur', ")
  if paint.ndim == 1:
    return lambda image, alpha: blend(image, np.full_like(image, paint), alpha)
  fitted = functools.lru_cache(maxsize=1)(lambda *size: cover(paint, size))
  return lambda image, alpha: blend(image, fitted(*alpha.shape), alpha)


def _read(key: str, given: str, other: str = '') -> np.ndarray:
  """A colour uint8 [3], in one of the ways of CSS, or a picture file."""
  try:
    return np.array(ImageColor.getrgb(given)[:3], np.uint8)
  except ValueError:
    pass
  try:
    return files.read_image(given)
  except UserError as error:
    raise UserError(
      f"{key} is {given!r}; expected {other}a colour such as white or #204060, or a picture's file"
      f' ({error})'
    ) from error


def _classes(key: str, given: str, info: DatasetInfo) -> tuple[int, ...]:
  """The numbers of classes named with commas between them."""
  names = [name.strip() for name in given.split(',')]
  for name in names:
    if name not in info.class_names:
      raise UserError(f'{key}: there is no class {name!r}{nearest(name, info.class_names)}')
  return tuple(info.class_names.index(name) for name in names)


def _foreground(given: str, info: DatasetInfo) -> tuple[int, ...]:
  """The classes named; else all but the background, or the second of two."""
  if given:
    return _classes('inference.foreground', given, info)
  front = tuple(i for i, name in enumerate(info.class_names) if name not in _BACKGROUND)
  if len(front) < info.num_classes:
    return front
  if len(front) == 2:
    return (1,)
  raise UserError(
    "inference.foreground is '', and no class is called background; expected one or more, with "
    f'commas between them, of {", ".join(info.class_names)}'
  )
