"""ISBI 2012: membranes of nerve cells under the electron microscope, membrane or cell.

Arganda-Carreras et al.: "Crowdsourcing the creation of image segmentation algorithms for
connectomics", Frontiers in Neuroanatomy 9, 2015; the pictures are of Cardona et al., PLoS Biology
8(10), 2010: 30 consecutive sections, 512x512 pixels of 4x4 nm at 50 nm, of a fruit fly larva's
ventral nerve cord. https://imagej.net/events/isbi-2012-segmentation-challenge (free for
non-commercial research on segmentation).

`data.dir` holds `train-volume.tif` and `train-labels.tif` as the challenge shipped them, one page a
section, or `train/image/N.png` and `train/label/N.png`, N from 0 to 29. Labels are 0 = membrane and
255 = cell; nothing is ignored. The labels of the challenge's test volume were never published.

There is no official val: `train` is the first 24 sections and `val` the last 6, so that only one
pair of neighbours is torn apart; `all` is all 30.
"""

from pathlib import Path

import numpy as np

from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_present,
  check_split,
  dataset_dir,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.files import Page, num_pages
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

_SECTIONS = {'train': range(24), 'val': range(24, 30), 'all': range(30)}
INFO = DatasetInfo(
  'isbi2012',
  ('membrane', 'cell'),
  np.array([(0, 0, 0), (255, 255, 255)], np.uint8),
  num_images={split: len(sections) for split, sections in _SECTIONS.items()},
  home='https://imagej.net/events/isbi-2012-segmentation-challenge (non-commercial research)',
  layout=('train-volume.tif|train/image/0.png', 'train-labels.tif|train/label'),
)
INFOS = {'': INFO}
LABELS = LabelMap({0: 0, 255: 1})


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train, val or all."""
  del seed
  root = dataset_dir(data_config, INFO)
  check_split(split, list(_SECTIONS))
  volume = root / 'train-volume.tif'
  find = _pages if volume.exists() else _pngs
  images, labels = find(root)
  records = [{'image': images[n], 'label': labels[n]} for n in _SECTIONS[split]]
  names = [f'{volume.name}/{n}' for n in _SECTIONS[split]] if find is _pages else None
  return FileSource(INFO, records, LABELS, root, extras=data_config.extras, names=names)


def _pages(root: Path) -> list[list[Page]]:
  """The sections and their labels, in the challenge's two files."""
  volumes = [root / 'train-volume.tif', root / 'train-labels.tif']
  for path in volumes:
    if (count := num_pages(path)) != 30:
      raise UserError(f'{path}: {count} pages; expected 30')
  return [[Page(path, n) for n in range(30)] for path in volumes]


def _pngs(root: Path) -> list[list[Path]]:
  folders = [root / 'train/image', root / 'train/label']
  sections = [[folder / f'{n}.png' for n in range(30)] for folder in folders]
  for paths in sections:
    check_present(paths, root)
  return sections
