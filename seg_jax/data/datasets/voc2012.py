"""PASCAL VOC 2012: 20 kinds of objects and the background, with class and object masks.

Everingham et al.: "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 111(1), 2015.
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (Flickr's terms for the pictures; cite the paper).

`data.dir` is `VOCdevkit/VOC2012` or a folder above it: `JPEGImages/`, `SegmentationClass/` and
`SegmentationObject/` (palette PNG; the border of 5 pixels around objects is 255 and ignored), and
`ImageSets/Segmentation/{train,val,trainval}.txt` with 1464, 1449 and 2913 pictures.

The split `train_aug`, 10582 pictures, adds the masks of Hariharan et al.: "Semantic Contours from
Inverse Detectors", ICCV 2011 (SBD), to `train` and leaves out all of `val`. They are taken from
`SegmentationClassAug/` in the same folder (PNG, as passed around), or from SBD itself, unpacked
there as `benchmark_RELEASE/dataset/` or `sbd/` (`cls/*.mat`, `inst/*.mat`). Where both have masks
of a picture, VOC's own are taken; SBD's have no border that is ignored.
"""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_present,
  check_split,
  dataset_dir,
  lines,
  listed,
  make_records,
  voc_colormap,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

# fmt: off
_CLASSES = (
  'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
  'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa',
  'train', 'tvmonitor',
)
# fmt: on
INFO = DatasetInfo(
  'voc2012',
  _CLASSES,
  voc_colormap(len(_CLASSES)),
  things=tuple(range(1, 21)),
  num_images={'train': 1464, 'val': 1449, 'trainval': 2913, 'train_aug': 10582},
  home='http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (Flickr terms; free for research)',
  layout=('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'),
)
INFOS = {'': INFO}
LABELS = LabelMap({**{i: i for i in range(len(_CLASSES))}, 255: IGNORE})


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train, val, trainval or train_aug."""
  del seed
  root = dataset_dir(data_config, INFO, 'VOC2012', 'VOCdevkit/VOC2012')
  check_split(split, list(INFO.num_images))
  extras = data_config.extras
  listing = root / 'ImageSets/Segmentation' / f'{"train" if split == "train_aug" else split}.txt'
  records = make_records(
    listed(listing, root / 'JPEGImages', '.jpg'),
    extras,
    label=(root / 'SegmentationClass', ''),
    instances=(root / 'SegmentationObject', ''),
  )
  if split == 'train_aug':
    val = {stem for _, stem in lines(listing.with_name('val.txt'))}
    own = {record['image'].stem for record in records}
    records += _sbd_records(root, val | own, extras)
  return FileSource(
    INFO,
    records,
    LABELS,
    root,
    extras=extras,
    read_raw=_read_raw,
    read_instances=_read_instances,
  )


def _sbd_records(root: Path, leave_out: set[str], extras) -> list[dict[str, Path]]:
  """SBD's pictures, but those of `leave_out`; the pictures themselves are VOC's."""
  folders = ('SegmentationClassAug', 'benchmark_RELEASE/dataset/cls', 'sbd/cls')
  folder = next((root / name for name in folders if (root / name).is_dir()), None)
  if folder is None:
    raise UserError(f'{root}: train_aug needs one of {", ".join(folders)} in it')
  masks = sorted([*folder.glob('[!.]*.png'), *folder.glob('[!.]*.mat')])
  records = [
    {'image': root / 'JPEGImages' / f'{mask.stem}.jpg', 'label': mask}
    for mask in masks
    if mask.stem not in leave_out
  ]
  if 'instances' in extras:
    if folder.name != 'cls':
      raise UserError(f'{folder}: has no instances; train_aug takes them from SBD ({folders[1]})')
    records = [r | {'instances': folder.with_name('inst') / r['label'].name} for r in records]
  check_present([r[key] for r in records for key in ('image', 'instances') if key in r], folder)
  return records


def _read_raw(path: Path) -> np.ndarray:
  return files.read_mask(path) if path.suffix == '.png' else _read_sbd(path, 'GTcls')[0]


def _read_sbd(path: Path, name: str) -> tuple[np.ndarray, list[int]]:
  """The map [H, W], and of `GTinst` the class of each object in it."""
  try:
    stored = loadmat(path, struct_as_record=False, squeeze_me=True)[name]
    return stored.Segmentation, np.atleast_1d(getattr(stored, 'Categories', ())).tolist()
  except Exception as error:  # whatever SciPy raises for what is not a MATLAB file
    raise UserError(f'{path}: cannot be read ({error!r}); expected {name} of SBD') from error


def _read_instances(path: Path, label: np.ndarray) -> instances.Instances:
  """Object k of a mask; its class is in SBD's table, or else that of most of its pixels."""
  if path.suffix == '.mat':
    ids, classes = _read_sbd(path, 'GTinst')
    if ids.max() > len(classes):
      raise UserError(
        f'{path}: object {ids.max()}; expected one of the {len(classes)} in Categories'
      )
    return instances.from_ids(ids, lambda k: (classes[k - 1], False) if k else None)
  ids = files.read_values(path)
  if ids.shape != label.shape or ids.dtype != np.uint8:
    raise UserError(
      f'{path}: {ids.dtype} {ids.shape}; expected 8 bits and the size of its class mask,'
      f' {label.shape}'
    )
  counts = np.bincount(ids.ravel() * np.int64(256) + label.ravel(), minlength=1 << 16)
  class_of = counts.reshape(256, 256)[:, : len(_CLASSES)].argmax(1).tolist()
  return instances.from_ids(
    ids, lambda k: (class_of[k], False) if k not in (0, IGNORE) and class_of[k] else None
  )
