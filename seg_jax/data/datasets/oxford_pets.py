"""Oxford-IIIT Pet: cats and dogs of 37 breeds, each picture with a trimap.

Parkhi, Vedaldi, Zisserman, Jawahar: "Cats and Dogs", CVPR 2012.
https://www.robots.ox.ac.uk/~vgg/data/pets (CC BY-SA 4.0).

`data.dir` holds `images/NAME.jpg`, `annotations/trimaps/NAME.png` and
`annotations/{trainval,test}.txt`, with 3680 and 3669 names in the first column. (Some pictures are
PNG or GIF inside, whatever they are called, and are read as such; the hidden files `._NAME.png` of
the archive are never looked at.)

The trimaps hold 1 = pet, 2 = background and 3 = border, a band around the pet that nobody decided.
The variant `trimap`, the default, has the three as classes, as most who use the dataset do; in the
variant `binary` the classes are background and pet, and the border is ignored.

`train` and `val` are ours: one in five or so of trainval is val, by a hash of the name.
"""

import numpy as np

from seg_jax import IGNORE
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_present,
  check_split,
  choose_variant,
  dataset_dir,
  hashed_split,
  lines,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap

# name, value in the trimaps, colour (there are no official ones)
_CLASSES = {
  'trimap': (
    ('pet', 1, (128, 0, 0)),
    ('background', 2, (0, 0, 0)),
    ('border', 3, (224, 224, 192)),
  ),
  'binary': (('background', 2, (0, 0, 0)), ('pet', 1, (128, 0, 0))),
}
INFOS = {
  variant: DatasetInfo(
    'oxford_pets',
    tuple(name for name, _, _ in classes),
    np.array([colour for _, _, colour in classes], np.uint8),
    num_images={'trainval': 3680, 'test': 3669},
    home='https://www.robots.ox.ac.uk/~vgg/data/pets (CC BY-SA 4.0)',
    layout=('images', 'annotations/trimaps'),
  )
  for variant, classes in _CLASSES.items()
}
LABELS = {
  variant: LabelMap({3: IGNORE} | {value: i for i, (_, value, _) in enumerate(classes)})
  for variant, classes in _CLASSES.items()
}


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train, val, trainval or test."""
  del seed
  info, label_map = choose_variant(data_config, {v: (INFOS[v], LABELS[v]) for v in INFOS})
  root = dataset_dir(data_config, info)
  check_split(split, ('train', 'val', 'trainval', 'test'))
  listing = root / 'annotations' / f'{"test" if split == "test" else "trainval"}.txt'
  names = [text.split()[0] for _, text in lines(listing, comment='#')]
  if split in ('train', 'val'):
    names = hashed_split(split, names)
  records = [
    {
      'image': root / f'images/{name}.jpg',
      'label': root / f'annotations/trimaps/{name}.png',
    }
    for name in names
  ]
  for key in ('image', 'label'):
    check_present([record[key] for record in records], listing)
  return FileSource(info, records, label_map, root, extras=data_config.extras)
