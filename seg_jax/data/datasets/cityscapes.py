"""Cityscapes: streets of 50 cities from a car, 19 classes, with instances and disparity.

Cordts et al.: "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
https://arxiv.org/abs/1604.01685. https://www.cityscapes-dataset.com (registration; non-commercial).

`data.dir` holds `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_*.png`,
2975 pictures in train and 500 in val, 2048 x 1024. Labels are read from `labelIds`, so nothing
needs to be prepared; ids that are not evaluated are ignored. (Licence plates have the id -1, which
the owners never draw: their pixels are those of the car below.) Instances are read from
`instanceIds`: id * 1000 + n is object n, and an id of a thing alone is a group (`is_crowd`). Depth
comes from `disparity/` and `camera/`: disparity (p - 1) / 256 in pixels, p = 0 is unknown, and
depth = baseline * focal length / disparity, in metres; p = 1, no disparity, is unknown here too.
"""

import json
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_split,
  dataset_dir,
  make_records,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

# The 19 classes that are evaluated, in the order of their train ids: labelIds' value, colour.
_CLASSES = {
  'road': (7, (128, 64, 128)),
  'sidewalk': (8, (244, 35, 232)),
  'building': (11, (70, 70, 70)),
  'wall': (12, (102, 102, 156)),
  'fence': (13, (190, 153, 153)),
  'pole': (17, (153, 153, 153)),
  'traffic light': (19, (250, 170, 30)),
  'traffic sign': (20, (220, 220, 0)),
  'vegetation': (21, (107, 142, 35)),
  'terrain': (22, (152, 251, 152)),
  'sky': (23, (70, 130, 180)),
  'person': (24, (220, 20, 60)),
  'rider': (25, (255, 0, 0)),
  'car': (26, (0, 0, 142)),
  'truck': (27, (0, 0, 70)),
  'bus': (28, (0, 60, 100)),
  'train': (31, (0, 80, 100)),
  'motorcycle': (32, (0, 0, 230)),
  'bicycle': (33, (119, 11, 32)),
}
NAMES = tuple(_CLASSES)
PALETTE = np.array([colour for _, colour in _CLASSES.values()], np.uint8)
THINGS = tuple(range(NAMES.index('person'), len(NAMES)))
TRAIN_IDS = {value: i for i, (value, _) in enumerate(_CLASSES.values())}
LABELS = LabelMap({value: TRAIN_IDS.get(value, IGNORE) for value in range(34)})

INFO = DatasetInfo(
  'cityscapes',
  NAMES,
  PALETTE,
  THINGS,
  num_images={'train': 2975, 'val': 500},
  home='https://www.cityscapes-dataset.com (registration; non-commercial)',
  layout=('leftImg8bit', 'gtFine'),
)
INFOS = {'': INFO}


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train or val; test has no public labels."""
  del seed
  root = dataset_dir(data_config, INFO)
  check_split(split, list(INFO.num_images))
  labels = root / 'gtFine' / split
  records = make_records(
    files.files_by_stem(root / 'leftImg8bit' / split, '_leftImg8bit'),
    data_config.extras,
    label=(labels, '_gtFine_labelIds'),
    instances=(labels, '_gtFine_instanceIds'),
    depth=(root / 'disparity' / split, '_disparity'),
  )
  return FileSource(
    INFO,
    records,
    LABELS,
    root,
    extras=data_config.extras,
    read_instances=read_instances,
    read_depth=_read_depth,
  )


def read_instances(path: Path, label: np.ndarray, factor: int = 1000) -> instances.Instances:
  """From ids of the form labelId * `factor` + n; a labelId alone is a group."""
  del label

  def meaning(value):
    kind, crowd = (value, True) if value < factor else (value // factor, False)
    train_id = TRAIN_IDS.get(kind)
    return (train_id, crowd) if train_id in THINGS else None

  return instances.from_ids(files.read_values(path), meaning)


def _read_depth(path: Path) -> np.ndarray:
  """Metres, 0 = unknown; the camera's file has the disparity's name in another folder."""
  disparity = (files.read_values(path).astype(np.float32) - 1) / 256
  name = path.name.replace('_disparity.png', '_camera.json')
  camera_path = path.parents[3] / 'camera' / path.parts[-3] / path.parts[-2] / name
  try:
    camera = json.loads(camera_path.read_text())
    scale = camera['extrinsic']['baseline'] * camera['intrinsic']['fx']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{camera_path}: cannot be read ({error!r}); expected the camera of {path}'
    ) from error
  known = disparity > 0
  return np.divide(scale, disparity, out=np.zeros_like(disparity), where=known)
