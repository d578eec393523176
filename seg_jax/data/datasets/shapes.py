"""Generated scenes: textured cut-outs standing on a textured floor; classes, instances, depth.

Nothing is read: scene `index` of a split follows from (seed, split, index) alone. The geometry is
exact: a camera looks along a floor whose depth follows from the row, each shape is a plane that
stands on the floor and may be turned about its vertical axis, the nearer surface hides the farther
one, and shadows are the shapes' projections onto the floor. The class is the outline: texture,
size, rotation and light are drawn without regard to it. Colour is a hint, as in the world: nine in
ten cut-outs have one that is usual for their class, the tenth has any.
"""

import cmath
import colorsys
import dataclasses
import math

import cv2
import numpy as np

from seg_jax.data.datasets.base import DatasetInfo, check_extras, check_split
from seg_jax.data.instances import from_ids

_SPLITS = {'train': 2000, 'val': 200, 'test': 200}
_CLASSES = {
  'background': (38, 42, 54),
  'disk': (239, 71, 111),
  'square': (255, 209, 102),
  'triangle': (6, 214, 160),
  'star': (17, 138, 178),
  'ring': (178, 132, 240),
  'bar': (255, 140, 66),
}
INFO = DatasetInfo(
  'shapes',
  tuple(_CLASSES),
  np.array(list(_CLASSES.values()), np.uint8),
  things=tuple(range(1, len(_CLASSES))),
  num_images=_SPLITS,
)
INFOS = {'': INFO}


def open_split(data_config, split: str, seed: int) -> 'Shapes':
  """`split` is train, val or test."""
  check_split(split, list(_SPLITS))
  extras = check_extras(data_config.extras, INFO, ('instances', 'depth'))
  return Shapes(tuple(data_config.shapes_size), split, seed, extras)


class Shapes:
  """A `Source` of scenes of `size` (rows, columns), drawn at each access."""

  info = INFO

  def __init__(self, size: tuple[int, int], split: str, seed: int, extras: tuple[str, ...] = ()):
    self._size, self._extras = size, extras
    self._key = (seed, list(_SPLITS).index(split))
    self.names = [f'{split}/{index:06d}' for index in range(_SPLITS[split])]

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    self.names[index]  # IndexError
    scene = draw_scene(np.random.default_rng((*self._key, index)), *self._size)
    record = {key: scene[key] for key in ('image', 'label', *self._extras)}
    if 'instances' in record:
      class_of = dict(zip(scene['instances'].ravel().tolist(), scene['label'].flat, strict=True))
      record |= from_ids(scene['instances'], lambda k: (int(class_of[k]), False) if k else None)
    return record

  def size(self, index: int) -> tuple[int, int]:
    del index
    return self._size

  def __repr__(self) -> str:
    seed, _ = self._key
    return f'Shapes({self._size}, {self.names[0]} to {self.names[-1]}, seed {seed})'


def _regular(count: int, *radii: float) -> np.ndarray:
  return np.resize(radii, count) * np.exp(2j * np.pi * np.arange(count) / count)


# Class -> contours around 0; a point within two of them is outside. Points of a plane are complex
# numbers, so that turning them is a product.
_OUTLINES = {
  1: [_regular(48, 1.0)],
  2: [_regular(4, 1.2)],
  3: [_regular(3, 1.2)],
  4: [_regular(10, 1.25, 0.55)],
  5: [_regular(48, 1.0), _regular(48, 0.55)],
  6: [np.array([1.25 + 0.32j, -1.25 + 0.32j, -1.25 - 0.32j, 1.25 - 0.32j])],
}


@dataclasses.dataclass(frozen=True)
class _Camera:
  """At the origin; x to the right, y down, z into the scene, in metres; the floor is y = height."""

  height: float
  focal: float  # pixels
  column: float  # of the ray straight ahead
  horizon: float  # its row, above the picture: every pixel sees the floor

  def project(self, points: np.ndarray) -> np.ndarray:
    """[M, 3] metres -> [M, 2] column and row."""
    return points[:, :2] * self.focal / points[:, 2:] + (self.column, self.horizon)

  def floor(self, column: float, row: float) -> np.ndarray:
    """The point of the floor, [3] metres, that a pixel sees."""
    scale = self.height / (row - self.horizon)
    return np.array([(column - self.column) * scale, self.height, self.focal * scale])


@dataclasses.dataclass(frozen=True)
class _Cutout:
  """A flat shape that stands on the floor; its own axes are a, along it, and b, down."""

  label: int
  radius: float
  angle: float  # of the outline in its plane
  yaw: float  # of the plane about the vertical axis; 0 faces the camera
  centre: tuple[float, float, float]
  contours: list[np.ndarray]  # [M, 3] metres each

  def meet(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays of slopes `u` [1, W] and `v` [H, 1] meet the plane.

    Returns:
      complex64 [H, W], a + bj in radii, and float32 [1, W], the depth in metres.
    """
    x, y, z = self.centre
    a = (u * z - x) / (math.cos(self.yaw) - u * math.sin(self.yaw))
    depth = z + a * math.sin(self.yaw)
    return (a + 1j * (v * depth - y)) / self.radius, depth


def draw_scene(rng: np.random.Generator, rows: int, columns: int) -> dict[str, np.ndarray]:
  """One scene: `image`, `label`, `instances` (0 is the floor, 1 the farthest cut-out), `depth`.

  A pixel belongs to a cut-out that covers half of it or more, and in the image the edges are mixed.
  """
  camera, cutouts = _arrange(rng, rows, columns)
  # The slopes of each pixel's ray.
  u = (np.arange(columns, dtype=np.float32)[None] + 0.5 - camera.column) / camera.focal
  v = (np.arange(rows, dtype=np.float32)[:, None] + 0.5 - camera.horizon) / camera.focal

  depth = np.repeat(camera.height / v, columns, axis=1)
  picture = _paint_floor(rng, camera, u, depth)
  light = rng.uniform(-0.9, 0.9)  # metres that a shadow falls to the right for each of height
  picture *= 1 - rng.uniform(0.4, 0.65) * _shadows(cutouts, camera, light, rows, columns)
  label = np.zeros((rows, columns), np.uint8)
  instances = np.zeros((rows, columns), np.int32)

  for instance, cutout in enumerate(cutouts, 1):
    outline = [camera.project(contour) for contour in cutout.contours]
    window, coverage = _rasterize(outline, rows, columns)
    points, distance = cutout.meet(u[:, window[1]], v[window[0]])
    paint = _paint_cutout(rng, cutout, points, coverage, light)
    coverage *= distance < depth[window]
    picture[:, *window] += coverage * (paint - picture[:, *window])
    solid = coverage >= 0.5
    np.copyto(depth[window], distance, where=solid)
    label[window][solid] = cutout.label
    instances[window][solid] = instance

  haze = 1 - np.exp(depth * (-0.08 / camera.height))
  picture += haze * (_colour(rng, (0, 1), (0, 0.2), (0.6, 0.95)) - picture)
  picture *= 255 * rng.uniform(0.85, 1.1)
  picture += rng.standard_normal((rows, columns), np.float32) * rng.uniform(2, 9)
  image = cv2.merge(np.clip(picture, 0, 255).astype(np.uint8))
  return {'image': image, 'label': label, 'instances': instances, 'depth': depth}


def _arrange(rng: np.random.Generator, rows: int, columns: int) -> tuple[_Camera, list[_Cutout]]:
  """A camera, and what stands before it, from far to near."""
  horizon = -rows * rng.uniform(0.25, 0.8)
  rng.uniform()  # not used; results are told of the scenes that come of what is drawn after it
  # All things grow with the camera's height, so a picture cannot tell it: it is the same in all.
  camera = _Camera(1.7, 1.3 * max(rows, columns), columns / 2, horizon)
  cutouts = [_stand_somewhere(rng, camera, rows, columns) for _ in range(rng.integers(3, 9))]
  return camera, sorted(cutouts, key=lambda cutout: -cutout.centre[2])


def _stand_somewhere(rng: np.random.Generator, camera: _Camera, rows: int, columns: int) -> _Cutout:
  label = int(rng.integers(1, len(_CLASSES)))
  foot = camera.floor(columns * rng.uniform(0.04, 0.96), rows * rng.uniform(0.22, 1))
  # The larger ones span two fifths of the picture's shorter side when in its middle.
  middle = camera.floor(0, rows * 0.6)[2] / camera.focal
  radius = min(rows, columns) * middle * rng.uniform(0.1, 0.2)
  angle = rng.uniform(0, 2 * math.pi)
  yaw = rng.uniform(-0.8, 0.8) * (rng.random() < 0.6)
  outline = [contour * cmath.rect(radius, angle) for contour in _OUTLINES[label]]
  centre = foot - (0, max(contour.imag.max() for contour in outline), 0)
  plane = np.array([(math.cos(yaw), 0, math.sin(yaw)), (0, 1, 0)])
  contours = [centre + np.stack([c.real, c.imag], axis=-1) @ plane for c in outline]
  return _Cutout(label, radius, angle, yaw, tuple(centre.tolist()), contours)


def _rasterize(contours, rows: int, columns: int, fine: int = 8):
  """A window of the picture, and the covered share of each of its pixels, float32 [h, w]."""
  points = np.concatenate(contours)
  limits = (columns, rows)
  first = np.clip(np.floor(points.min(0)).astype(int), 0, limits)
  last = np.clip(np.ceil(points.max(0)).astype(int), 0, limits)
  width, height = last - first
  canvas = np.zeros((height * fine, width * fine), np.uint8)
  _fill(canvas, [(contour - first) * fine for contour in contours])
  coverage = cv2.resize(canvas, (int(width), int(height)), interpolation=cv2.INTER_AREA)
  window = slice(first[1], last[1]), slice(first[0], last[0])
  return window, coverage.astype(np.float32) / 255


def _fill(canvas: np.ndarray, contours) -> None:
  """Fills what an odd number of contours holds; a pixel's centre is at 0.5, in OpenCV at 0."""
  fixed = [np.round((contour - 0.5) * 16).astype(np.int32) for contour in contours]
  cv2.fillPoly(canvas, fixed, 255, shift=4)


def _shadows(cutouts, camera: _Camera, light: float, rows: int, columns: int) -> np.ndarray:
  """float32 [H, W], 1 where no light falls: the outlines, projected onto the floor."""
  canvas = np.zeros((rows, columns), np.uint8)
  for cutout in cutouts:
    fallen = [c + (camera.height - c[:, 1:2]) * (light, 1, 0.4) for c in cutout.contours]
    _fill(canvas, [camera.project(contour) for contour in fallen])
  return cv2.GaussianBlur(canvas, (0, 0), 0.01 * rows + 0.3).astype(np.float32) / 255


def _paint_floor(rng, camera: _Camera, u: np.ndarray, depth: np.ndarray) -> np.ndarray:
  period = camera.height * rng.uniform(0.15, 0.5)
  periods = depth**2 / (camera.height * camera.focal * period)  # that a pixel spans
  ground = (u * depth + 1j * depth) / period
  contrast = 1 / (1 + 4 * periods**2)
  return _texture(rng, ground, (0, 1), (0.05, 0.3), (0.35, 0.8), contrast)


def _paint_cutout(rng, cutout: _Cutout, points, coverage, light: float) -> np.ndarray:
  own = points * cmath.rect(rng.uniform(0.6, 1.8), -cutout.angle)
  usual = cutout.label / (len(_CLASSES) - 1)
  hue = (usual - 0.06, usual + 0.06) if rng.random() < 0.9 else (0, 1)
  paint = _texture(rng, own, hue, (0.5, 0.95), (0.45, 1.0))
  # As if embossed: bright where the edge faces the light.
  edge = cv2.GaussianBlur(coverage, (0, 0), 0.8)
  relief = cv2.Sobel(edge, cv2.CV_32F, 0, 1) - light * cv2.Sobel(edge, cv2.CV_32F, 1, 0)
  facing = 0.95 - 0.2 * math.sin(light * cutout.yaw)
  return paint * (facing - 0.1 * points.imag + 0.15 * relief)


_WAVES = (
  lambda a, b: 4 * np.sin(a),  # stripes
  lambda a, b: 6 * np.sin(a) * np.sin(b),  # checks
  lambda a, b: 4 * (np.sin(a) + np.sin(b) - 0.9),  # dots
  lambda a, b: np.sin(0.3 * a),  # one slow change
  lambda a, b: np.sin(a + 1.7 * np.sin(0.7 * b + 1)) + np.sin(1.6 * b + 1.3 * np.sin(1.1 * a)),
)


def _texture(rng, points: np.ndarray, hue, saturation, value, contrast=1.0) -> np.ndarray:
  """float32 [3, H, W]: two colours in a random pattern over `points` [H, W], in its periods."""
  points = points * cmath.rect(2 * math.pi, rng.uniform(0, math.pi))
  a, b = np.ascontiguousarray(points.real), np.ascontiguousarray(points.imag)
  wave = _WAVES[rng.integers(len(_WAVES))](a, b)
  mix = 0.5 + contrast * (np.clip(0.5 + 0.5 * wave, 0, 1) - 0.5)
  first = _colour(rng, hue, saturation, value)
  second = first + rng.uniform(0.3, 1) * (_colour(rng, hue, saturation, value) - first)
  return first + mix * (second - first)


def _colour(rng: np.random.Generator, hue, saturation, value) -> np.ndarray:
  hsv = rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value)
  return np.array(colorsys.hsv_to_rgb(*hsv), np.float32)[:, None, None]
