"""BDD100K: 10,000 pictures from cars in the United States, Cityscapes' 19 classes, with instances.

Yu et al.: "BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning", CVPR 2020,
https://arxiv.org/abs/1805.04687. https://bdd-data.berkeley.edu (registration; for education,
research and not-for-profit purposes, the notice of the Regents of the University kept).

`data.dir` is the folder `bdd100k` or the one above it, 7000 pictures in train and 1000 in val, 1280
x 720. It is taken as it lies there, the later of the two releases if it is both:

- since 2020: `images/10k/SPLIT/*.jpg`, `labels/sem_seg/masks/SPLIT/*.png` and, for instances,
  `labels/ins_seg/bitmasks/SPLIT/*.png`;
- in 2018: `seg/images/SPLIT/*.jpg`, `seg/labels/SPLIT/*_train_id.png`, without instances.

Masks hold the number of the class, or 255, which is ignored. Bitmasks are RGBA: R is the category,
1 to 8, 0 where there is no object; of G, bit 0 is "ignored", bit 1 "crowd", bit 2 "occluded" and
bit 3 "truncated"; B * 256 + A is the object. Objects that are "ignored" or "crowd" are not counted,
the owners say, and are `is_crowd` here. Colours are those of Cityscapes, as in the toolkit's
`label.py`; its `sem_seg.toml` has those of wall and fence the other way round.
"""

from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.datasets import cityscapes
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_split,
  dataset_dir,
  make_records,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

INFO = DatasetInfo(
  'bdd100k',
  cityscapes.NAMES,
  cityscapes.PALETTE,
  cityscapes.THINGS,
  num_images={'train': 7000, 'val': 1000},
  home='https://bdd-data.berkeley.edu (registration; education, research, not-for-profit)',
  layout=('images/10k|seg/images', 'labels/sem_seg/masks|seg/labels'),
)
INFOS = {'': INFO}
LABELS = LabelMap({**{i: i for i in range(len(cityscapes.NAMES))}, 255: IGNORE})

_CATEGORIES = ('person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle')
_CLASS_OF = {i: cityscapes.NAMES.index(name) for i, name in enumerate(_CATEGORIES, 1)}
_NOT_COUNTED = 0b0011  # of the attributes: "ignored" and "crowd"


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train or val; test has no public labels."""
  del seed
  root = dataset_dir(data_config, INFO, 'bdd100k')
  check_split(split, list(INFO.num_images))
  later = (root / 'labels/sem_seg/masks').is_dir()
  if later:
    records = make_records(
      files.files_by_stem(root / 'images/10k' / split),
      data_config.extras,
      label=(root / 'labels/sem_seg/masks' / split, ''),
      instances=(root / 'labels/ins_seg/bitmasks' / split, ''),
    )
  else:
    images = files.files_by_stem(root / 'seg/images' / split)
    records = make_records(images, label=(root / 'seg/labels' / split, '_train_id'))
  return FileSource(
    INFO,
    records,
    LABELS,
    root,
    extras=data_config.extras,
    read_instances=read_instances if later else None,
  )


def read_instances(path: Path, label: np.ndarray) -> instances.Instances:
  """From a bitmask of four channels; pixels that agree in all of them are one object."""
  del label

  def meaning(value):
    category, attributes = value >> 24, value >> 16 & 255
    if not category:
      return None
    if category not in _CLASS_OF:
      raise UserError(f'{path}: category {category}; expected 0 to {len(_CATEGORIES)}')
    return _CLASS_OF[category], bool(attributes & _NOT_COUNTED)

  rgba = files.read_rgba(path).astype(np.int64)
  return instances.from_ids(rgba @ (1 << 24, 1 << 16, 1 << 8, 1), meaning)
