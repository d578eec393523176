"""NYU Depth v2: rooms seen by a Kinect, 40 or 13 classes, with depth.

Silberman, Hoiem, Kohli, Fergus: "Indoor Segmentation and Support Inference from RGBD Images", ECCV
2012. https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html (no licence stated; research).

The 894 names of the owners are grouped into 40 (variant `40`, the default), as in Gupta, Arbelaez,
Malik: "Perceptual Organization and Recognition of Indoor Scenes from RGB-D Images", CVPR 2013, or
these into 13 (variant `13`), as in Couprie et al.: "Indoor Semantic Segmentation using depth
information", ICLR 2013. Unlabelled pixels, 0, are ignored. The 1449 pictures, 480x640, are numbered
from 1; 795 of them are train and 654 are test, by scene, and there is no val.

`data.dir` holds `nyu_depth_v2_labeled.mat` as the owners ship it (read with h5py), or
`images/NUMBER.png` (or .jpg), `labels40/NUMBER.png` or `labels13/NUMBER.png` with 0 = unlabelled
and the classes from 1, and for depth `depth/NUMBER.png`, 16 bits of millimetres; the number may
have zeros in front, in all folders alike. Depth is in metres, 0 = unknown; of the .mat it is
`depths`, with the holes of `rawDepths` filled in.

There are no official colours: a class has the one that PASCAL VOC gives to its value in the PNG.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_extras,
  check_split,
  dataset_dir,
  make_records,
  variant_of,
  voc_colormap,
)
from seg_jax.data.datasets.sources import FileSource, Source
from seg_jax.data.label_map import LabelMap, to_classes, value_counts
from seg_jax.errors import UserError

# fmt: off
# Of the 40, 37 are one of the owners' names: its number in the .mat, and which of the 13 it is.
_NAMED = {
  'wall': (21, 'wall'), 'floor': (11, 'floor'), 'cabinet': (3, 'furniture'), 'bed': (157, 'bed'),
  'chair': (5, 'chair'), 'sofa': (83, 'sofa'), 'table': (19, 'table'), 'door': (28, 'wall'),
  'window': (59, 'window'), 'bookshelf': (88, 'furniture'), 'picture': (64, 'picture'),
  'counter': (7, 'furniture'), 'blinds': (80, 'window'), 'desk': (36, 'table'),
  'shelves': (42, 'furniture'), 'curtain': (89, 'window'), 'dresser': (169, 'furniture'),
  'pillow': (119, 'objects'), 'mirror': (122, 'objects'), 'floor mat': (143, 'floor'),
  'clothes': (141, 'objects'), 'ceiling': (4, 'ceiling'), 'books': (85, 'books'),
  'refridgerator': (17, 'furniture'), 'television': (172, 'tv'), 'paper': (15, 'objects'),
  'towel': (135, 'objects'), 'shower curtain': (123, 'objects'), 'box': (26, 'objects'),
  'whiteboard': (45, 'objects'), 'person': (331, 'objects'), 'night stand': (158, 'furniture'),
  'toilet': (124, 'objects'), 'sink': (24, 'objects'), 'lamp': (144, 'objects'),
  'bathtub': (136, 'objects'), 'bag': (55, 'objects'),
}
# The other three are what is left over: structures, furniture, and all that is not listed, props.
_STRUCTURES = {
  8, 25, 33, 38, 51, 53, 57, 58, 62, 65, 79, 94, 104, 112, 134, 153, 215, 216, 223, 225, 238, 241,
  242, 256, 295, 301, 339, 342, 354, 363, 372, 380, 392, 408, 412, 453, 456, 463, 477, 497, 541,
  550, 553, 567, 573, 582, 591, 609, 612, 615, 642, 645, 657, 658, 659, 663, 667, 668, 686, 700,
  702, 777, 778, 782, 850, 861, 868, 874,
}
_FURNITURE = {
  12, 43, 48, 50, 87, 106, 111, 161, 163, 174, 183, 204, 214, 219, 221, 224, 236, 262, 278, 291,
  298, 313, 343, 344, 356, 359, 373, 393, 401, 414, 418, 419, 430, 443, 444, 447, 448, 457, 458,
  460, 462, 475, 479, 485, 486, 493, 494, 498, 499, 509, 510, 515, 521, 524, 540, 549, 551, 554,
  556, 558, 576, 580, 608, 625, 703, 734, 770, 772, 797, 800, 803, 804, 813, 814, 815, 820, 829,
  835, 858, 863, 882, 892,
}
# The numbers of train, from and to; all others are test.
_TRAIN = (
  (3, 8), (10, 13), (19, 20), (22, 27), (44, 45), (48, 55), (58, 58), (64, 75), (80, 83), (92, 116),
  (120, 124), (130, 130), (135, 136), (138, 152), (156, 166), (170, 170), (177, 179), (203, 206),
  (213, 219), (223, 249), (251, 263), (265, 270), (274, 278), (286, 295), (303, 309), (313, 314),
  (318, 324), (336, 350), (353, 354), (365, 383), (391, 394), (398, 410), (415, 429), (436, 440),
  (449, 461), (467, 468), (478, 507), (514, 514), (527, 530), (534, 536), (540, 548), (552, 554),
  (572, 578), (584, 590), (595, 602), (608, 611), (614, 616), (622, 632), (639, 643), (646, 649),
  (652, 655), (659, 662), (665, 667), (674, 675), (682, 685), (691, 692), (695, 696), (700, 705),
  (714, 716), (719, 723), (729, 730), (735, 742), (745, 758), (788, 799), (805, 809), (815, 820),
  (824, 832), (847, 849), (853, 856), (863, 868), (872, 905), (909, 916), (920, 925), (929, 931),
  (936, 944), (948, 958), (963, 964), (968, 969), (978, 990), (996, 1000), (1005, 1009),
  (1013, 1020), (1024, 1031), (1035, 1037), (1040, 1047), (1050, 1051), (1054, 1056), (1059, 1074),
  (1085, 1087), (1097, 1097), (1105, 1105), (1110, 1116), (1120, 1122), (1132, 1134), (1137, 1143),
  (1159, 1161), (1168, 1169), (1172, 1173), (1177, 1178), (1185, 1191), (1197, 1200), (1213, 1215),
  (1221, 1225), (1231, 1232), (1236, 1246), (1251, 1253), (1266, 1274), (1281, 1284), (1296, 1296),
  (1300, 1301), (1309, 1313), (1316, 1328), (1333, 1334), (1341, 1346), (1350, 1352), (1357, 1363),
  (1366, 1367), (1370, 1383), (1392, 1393), (1402, 1406), (1415, 1420), (1425, 1429), (1434, 1440),
)
# fmt: on
_REST = {'otherstructure': 'objects', 'otherfurniture': 'furniture', 'otherprop': 'objects'}
_GROUPS = {name: group for name, (_, group) in _NAMED.items()} | _REST  # of the 40 into the 13
_NAMES = {'40': tuple(_GROUPS), '13': tuple(sorted(set(_GROUPS.values())))}
_NUM_NAMES, _NUM_PICTURES = 894, 1449
_MAT = 'nyu_depth_v2_labeled.mat'

INFOS = {
  variant: DatasetInfo(
    'nyuv2',
    names,
    voc_colormap(len(names) + 1)[1:],
    num_images={'train': 795, 'test': 654},
    home='https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html (research)',
    layout=(f'{_MAT}|images', f'{_MAT}|labels{variant}'),
  )
  for variant, names in _NAMES.items()
}


def _class_of(number: int) -> str:
  """Which of the 40 one of the 894 is."""
  if number in _STRUCTURES:
    return 'otherstructure'
  if number in _FURNITURE:
    return 'otherfurniture'
  return next((name for name, (own, _) in _NAMED.items() if own == number), 'otherprop')


LABELS = {  # of the PNG
  variant: LabelMap({0: IGNORE} | {i + 1: i for i in range(len(names))})
  for variant, names in _NAMES.items()
}
_OF_40 = {
  '40': {name: i for i, name in enumerate(_NAMES['40'])},
  '13': {name: _NAMES['13'].index(group) for name, group in _GROUPS.items()},
}
MAT_LABELS = {  # of the .mat
  variant: LabelMap({0: IGNORE} | {n: classes[_class_of(n)] for n in range(1, _NUM_NAMES + 1)})
  for variant, classes in _OF_40.items()
}


def open_split(data_config, split: str, seed: int) -> Source:
  """`split` is train or test."""
  del seed
  variant = variant_of(data_config, INFOS)
  info, extras = INFOS[variant], data_config.extras
  root = dataset_dir(data_config, info)
  check_split(split, list(info.num_images))
  if (root / _MAT).exists():
    numbers = [n for n in range(1, _NUM_PICTURES + 1) if _split_of(n) == split]
    return MatSource(info, root / _MAT, numbers, MAT_LABELS[variant], extras)
  images = files.files_by_stem(root / 'images')
  records = make_records(
    {stem: path for stem, path in images.items() if _split_of(_number(path)) == split},
    extras,
    label=(root / f'labels{variant}', ''),
    depth=(root / 'depth', ''),
  )
  return FileSource(info, records, LABELS[variant], root, extras=extras, read_depth=_read_depth)


def _split_of(number: int) -> str:
  return 'train' if any(first <= number <= last for first, last in _TRAIN) else 'test'


def _number(path: Path) -> int:
  if path.stem.isdecimal() and 1 <= (number := int(path.stem)) <= _NUM_PICTURES:
    return number
  raise UserError(f'{path}: expected its number in {_MAT}, 1 to {_NUM_PICTURES}, as its name')


def _read_depth(path: Path) -> np.ndarray:
  return files.read_mask(path).astype(np.float32) / 1000


class MatSource:
  """A `Source` of the pictures `numbers` in the owners' .mat, which is HDF5, at each access.

  HDF5 has MATLAB's axes in reverse order: H x W x 3 x N in MATLAB is [N, 3, W, H] here.
  """

  def __init__(
    self,
    info: DatasetInfo,
    path: Path,
    numbers: Sequence[int],
    label_map: LabelMap,
    extras: Sequence[str],
  ):
    self.info, self.label_map = info, label_map
    self.names = [f'{path.name}/{number:04d}' for number in numbers]
    self._path, self._numbers = path, numbers
    self._extras = check_extras(extras, info, ('depth',))
    with _opened(path) as stored:
      count, _, columns, rows = stored['images'].shape
    self._size = rows, columns
    if count != _NUM_PICTURES:
      raise UserError(f'{path}: {count} pictures; expected {_NUM_PICTURES}')

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    place = f'{self._path}, picture {self._numbers[index]}'
    record = {
      'image': self._read('images', index),
      'label': to_classes(self._read('labels', index), self.label_map, place),
    }
    if 'depth' in self._extras:
      record['depth'] = self._read('depths', index).astype(np.float32)
    return record

  def size(self, index: int) -> tuple[int, int]:
    del index
    return self._size

  def raw_values(self, index: int) -> dict[str, int]:
    """The pixels of each of the owners' 894 names, by number."""
    return value_counts(self._read('labels', index))

  def __repr__(self) -> str:
    return f'MatSource({self.info.name}, {len(self)} records, from {self.names[0]})'

  def _read(self, name: str, index: int) -> np.ndarray:
    # The file is opened each time: nothing that is open has to reach another process.
    with _opened(self._path) as stored:
      return np.ascontiguousarray(stored[name][self._numbers[index] - 1].T)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
  try:
    import h5py
  except ImportError:
    raise UserError(
      f"{path}: is read with h5py, which is not there; pip install 'seg_jax[nyuv2]'"
    ) from None
  try:
    with h5py.File(path, 'r') as stored:
      yield stored
  except (OSError, KeyError, ValueError) as error:  # what h5py raises for what is not as it should
    raise UserError(f'{path}: cannot be read ({error}); expected the whole file') from error
