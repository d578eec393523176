"""KITTI: streets of Karlsruhe, Cityscapes' 19 classes with instances; or the road and the rest.

Alhaija, Mustikovela, Mescheder, Geiger, Rother: "Augmented Reality Meets Computer Vision", IJCV
126(9), 2018, for `semantic`; Fritsch, Kuehnl, Geiger: "A New Performance Measure and Evaluation
Benchmark for Road Detection Algorithms", ITSC 2013, for `road`. http://www.cvlibs.net/datasets/
kitti (CC BY-NC-SA 3.0). Pictures have about 375 x 1242 pixels.

`data.dir` is the folder that holds `training/`, or the one above it:

- `semantic`, of `data_semantics.zip`: `training/{image_2,semantic,instance}/*_10.png`, 200
  pictures. `semantic` holds Cityscapes' label ids, of which those that are not evaluated are
  ignored. `instance` holds id * 256 + n in 16 bits, where n counts from 1 and n = 0 is, in the
  owners' words, no instance ground truth, to be ignored for instance segmentation: `is_crowd`.
- `road`, of `data_road.zip`: `training/image_2/{um,umm,uu}_*.png` and `training/gt_image_2/
  *_road_*.png`, 289 pictures (95 um, 96 umm, 98 uu). As in the owners' evaluation, pixels without
  red are ignored, and of the others those with blue, magenta, are the road. The lanes,
  `um_lane_*.png`, are not read, and what the benchmark ranks, F1 seen from above, is not computed.

The owners publish no split of the training pictures. These are ours: `val` are the numbers from 160
on in `semantic` (40 pictures), and from 76 on in each of the three kinds of `road` (61), in one
piece, as neighbours may be of one drive; `train` is the rest, `all` is everything.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.datasets import cityscapes
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_present,
  check_split,
  dataset_dir,
  make_records,
  variant_of,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

_HOME = 'http://www.cvlibs.net/datasets/kitti (CC BY-NC-SA 3.0)'
INFOS = {
  'semantic': DatasetInfo(
    'kitti',
    cityscapes.NAMES,
    cityscapes.PALETTE,
    cityscapes.THINGS,
    num_images={'train': 160, 'val': 40, 'all': 200},
    home=_HOME,
    layout=('training/image_2', 'training/semantic'),
  ),
  'road': DatasetInfo(
    'kitti',
    ('not road', 'road'),
    np.array([(255, 0, 0), (255, 0, 255)], np.uint8),
    num_images={'train': 228, 'val': 61, 'all': 289},
    home=_HOME,
    layout=('training/image_2', 'training/gt_image_2'),
  ),
}
LABELS = {
  'semantic': cityscapes.LABELS,
  'road': LabelMap({(255, 0, 0): 0, (255, 0, 255): 1, (0, 0, 0): IGNORE, (0, 0, 255): IGNORE}),
}
_FIRST_OF_VAL = {'semantic': 160, 'road': 76}


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train, val or all; testing has no public labels."""
  del seed
  variant = variant_of(data_config, INFOS)
  info = INFOS[variant]
  root = dataset_dir(data_config, info, 'data_road' if variant == 'road' else 'data_semantics')
  check_split(split, list(info.num_images))
  folder = root / 'training'
  if variant == 'road':
    records = _road(folder, split)
  else:
    records = _semantic(folder, split, data_config.extras)
  return FileSource(
    info,
    records,
    LABELS[variant],
    root,
    extras=data_config.extras,
    read_instances=None if variant == 'road' else read_instances,
  )


def _semantic(folder: Path, split: str, extras: Sequence[str]) -> list[dict[str, Path]]:
  images = files.files_by_stem(folder / 'image_2', '_10')
  return make_records(
    {stem: path for stem, path in images.items() if _is_in(split, path, _FIRST_OF_VAL['semantic'])},
    extras,
    label=(folder / 'semantic', '_10'),
    instances=(folder / 'instance', '_10'),
  )


def _road(folder: Path, split: str) -> list[dict[str, Path]]:
  images = files.files_by_stem(folder / 'image_2').values()
  records = [
    {'image': path, 'label': folder / 'gt_image_2' / path.name.replace('_', '_road_')}
    for path in images
    if _is_in(split, path, _FIRST_OF_VAL['road'])
  ]
  check_present([record['label'] for record in records], folder / 'image_2')
  return records


def _is_in(split: str, path: Path, first_of_val: int) -> bool:
  """By the six digits of a picture's name."""
  number = re.search(r'\d{6}', path.name)
  if number is None:
    raise UserError(f"{path}: expected KITTI's names, such as 000000_10.png or um_000000.png")
  return split == 'all' or (split == 'val') == (int(number[0]) >= first_of_val)


def read_instances(path: Path, label: np.ndarray) -> instances.Instances:
  """From ids of the form labelId * 256 + n, where n = 0 stands for no single object."""
  del label

  def meaning(value):
    train_id = cityscapes.TRAIN_IDS.get(value >> 8)
    return (train_id, value & 255 == 0) if train_id in cityscapes.THINGS else None

  return instances.from_ids(files.read_mask(path), meaning)
