"""ApolloScape: streets of Chinese cities, 22 classes of the scene, or 35 kinds of lane marks.

Huang et al.: "The ApolloScape Open Dataset for Autonomous Driving and its Application", TPAMI
42(10), 2020, https://arxiv.org/abs/1803.06184. http://apolloscape.auto (for education and research
only, no commercial use). Pictures have 3384 x 2710 pixels. `data.dir` is the folder in which all
archives are unpacked; with RECORD such as `Record001` and CAMERA such as `Camera 5`:

- `scene`, scene parsing: `roadNN_{ins,seg}/ColorImage/RECORD/CAMERA/*.jpg` and `roadNN_{ins,seg}/
  Label/RECORD/CAMERA/*_bin.png`. The classes are the owners' train ids, names spelled as theirs;
  a group, such as `car_groups`, is of the class of its members; others, rover, bridge, tunnel,
  overpass and 255, which are not evaluated, are ignored. Roads `_ins` have instances in
  `*_instanceIds.png`: id * 1000 + n, and a group is `is_crowd`; with `data.extras` only these
  roads are read. The depth maps, of the background without what moves, are not read.
- `lane`, lane segmentation: `ColorImage_roadNN/ColorImage/RECORD/CAMERA/*.jpg` and
  `Labels_roadNN/Label/RECORD/CAMERA/*_bin.png`. The classes are the train ids of the toolkit's
  `laneMarkDetection.py`, void and 35 marks; noise (249) and ignored (255) are ignored. The owners'
  ranking leaves out 18 of these 36, too, so its mean is over the other 18.

Splits: for `scene` the owners' lists, `roadNN_ins_{train,val}.lst` in `data.dir` or a folder in it,
each line a picture and its label below `data.dir` with a tab between. For a road without lists, and
for `lane`, they publish none; ours is: `val` is the last fifth of the road's records by name, at
least one if there are two, and `train` the rest. Pictures without a label, as of the test, are left
out; labels that hold nothing but 255 are as well of the test.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_present,
  check_split,
  dataset_dir,
  lines,
  variant_of,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

# fmt: off
_SCENE = {  # in the order of the train ids: the id in the labels, colour
  'sky': (17, (70, 130, 180)), 'car': (33, (0, 0, 142)), 'motorbicycle': (34, (0, 0, 230)),
  'bicycle': (35, (119, 11, 32)), 'person': (36, (0, 128, 192)), 'rider': (37, (128, 64, 128)),
  'truck': (38, (128, 0, 192)), 'bus': (39, (192, 0, 64)), 'tricycle': (40, (128, 128, 192)),
  'road': (49, (192, 128, 192)), 'siderwalk': (50, (192, 128, 64)),
  'traffic_cone': (65, (0, 0, 64)), 'road_pile': (66, (0, 0, 192)), 'fence': (67, (64, 64, 128)),
  'traffic_light': (81, (192, 64, 128)), 'pole': (82, (192, 128, 128)),
  'traffic_sign': (83, (0, 64, 64)), 'wall': (84, (192, 192, 128)), 'dustbin': (85, (64, 0, 192)),
  'billboard': (86, (192, 0, 192)), 'building': (97, (192, 0, 128)),
  'vegatation': (113, (128, 128, 64)),
}
_LANE = {
  'void': (0, (0, 0, 0)), 's_w_d': (200, (70, 130, 180)), 's_y_d': (204, (220, 20, 60)),
  'ds_w_dn': (213, (128, 0, 128)), 'ds_y_dn': (209, (255, 0, 0)), 'sb_w_do': (206, (0, 0, 60)),
  'sb_y_do': (207, (0, 60, 100)), 'b_w_g': (201, (0, 0, 142)), 'b_y_g': (203, (119, 11, 32)),
  'db_w_g': (211, (244, 35, 232)), 'db_y_g': (208, (0, 0, 160)), 'db_w_s': (216, (153, 153, 153)),
  's_w_s': (217, (220, 220, 0)), 'ds_w_s': (215, (250, 170, 30)), 's_w_c': (218, (102, 102, 156)),
  's_y_c': (219, (128, 0, 0)), 's_w_p': (210, (128, 64, 128)), 's_n_p': (232, (238, 232, 170)),
  'c_wy_z': (214, (190, 153, 153)), 'a_w_u': (202, (0, 0, 230)), 'a_w_t': (220, (128, 128, 0)),
  'a_w_tl': (221, (128, 78, 160)), 'a_w_tr': (222, (150, 100, 100)),
  'a_w_tlr': (231, (255, 165, 0)), 'a_w_l': (224, (180, 165, 180)), 'a_w_r': (225, (107, 142, 35)),
  'a_w_lr': (226, (201, 255, 229)), 'a_n_lu': (230, (0, 191, 255)), 'a_w_tu': (228, (51, 255, 51)),
  'a_w_m': (229, (250, 128, 114)), 'a_y_t': (233, (127, 255, 0)), 'b_n_sr': (205, (255, 128, 0)),
  'd_wy_za': (212, (0, 255, 255)), 'r_wy_np': (227, (178, 132, 190)),
  'vom_wy_n': (223, (128, 128, 64)), 'om_n_n': (250, (102, 0, 204)),
}
# fmt: on
_SCENE_IDS = {value: i for i, (value, _) in enumerate(_SCENE.values())}
_OBJECTS = {value: i for value, i in _SCENE_IDS.items() if 33 <= value <= 40}
_GROUPS = {value + 128: i for value, i in _OBJECTS.items()}  # 161 car_groups, ...


def _info(classes: dict, things: Iterable[int], *layout: str) -> DatasetInfo:
  return DatasetInfo(
    'apolloscape',
    tuple(classes),
    np.array([colour for _, colour in classes.values()], np.uint8),
    tuple(things),
    home='http://apolloscape.auto (education and research only)',
    layout=layout,
  )


INFOS = {
  'scene': _info(_SCENE, _OBJECTS.values(), 'road*/ColorImage', 'road*/Label'),
  'lane': _info(_LANE, (), 'ColorImage_road*/ColorImage', 'Labels_road*/Label'),
}
LABELS = {
  'scene': LabelMap(_SCENE_IDS | _GROUPS | dict.fromkeys((0, 1, 98, 99, 100, 255), IGNORE)),
  'lane': LabelMap(
    {value: i for i, (value, _) in enumerate(_LANE.values())} | {249: IGNORE, 255: IGNORE}
  ),
}
_SPLITS = ('train', 'val')


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train or val; test has no public labels."""
  del seed
  variant = variant_of(data_config, INFOS)
  root = dataset_dir(data_config, INFOS[variant])
  check_split(split, _SPLITS)
  scene, extras = variant == 'scene', data_config.extras
  records = []
  if scene:
    for labels in sorted(root.glob('road*_ins/Label' if extras else 'road*/Label')):
      listing = _listing(root, labels.parent.name, split)
      images = labels.with_name('ColorImage')
      records += _listed(root, listing) if listing else _by_record(images, labels, split)
  else:
    for labels in sorted(root.glob('Labels_road*/Label')):
      images = root / labels.parent.name.replace('Labels', 'ColorImage') / 'ColorImage'
      records += _by_record(images, labels, split)
  if scene and 'instances' in extras:
    for record in records:
      name = record['label'].name.replace('_bin.', '_instanceIds.')
      record['instances'] = record['label'].with_name(name), record['label']
    check_present([record['instances'][0] for record in records], root)
  return FileSource(
    INFOS[variant],
    records,
    LABELS[variant],
    root,
    extras=extras,
    read_instances=_read_instances if scene else None,
  )


def _listing(root: Path, road: str, split: str) -> Path | None:
  """The owners' list of the road's split; None if there is a list of none of its splits."""
  lists = {path.name: path for path in (*root.glob('*/*.lst'), *root.glob('*.lst'))}
  if not any(f'{road}_{name}.lst' in lists for name in _SPLITS):
    return None
  # A split of our own besides one of theirs would hold its pictures, too.
  return lists.get(f'{road}_{split}.lst', root / f'{road}_{split}.lst')


def _listed(root: Path, listing: Path) -> list[dict[str, Path]]:
  records = []
  for place, text in lines(listing):
    paths = [root / path for path in text.split('\t')]
    if len(paths) != 2:
      raise UserError(f'{place}: {text!r}; expected a picture and its label, with a tab between')
    records.append({'image': paths[0], 'label': paths[1]})
  check_present([path for record in records for path in record.values()], listing)
  return records


def _by_record(images: Path, labels: Path, split: str) -> list[dict[str, Path]]:
  """The labels of the split's records, each with its picture."""
  found = files.files_by_stem(labels, '_bin')
  names = sorted({stem.split('/')[0] for stem in found})
  first_of_val = len(names) - min(max(len(names) // 5, 1), len(names) - 1)
  chosen = set(names[first_of_val:] if split == 'val' else names[:first_of_val])
  found = {stem: path for stem, path in found.items() if stem.split('/')[0] in chosen}
  pictures = files.match_stems(found, images, '', 'picture')
  return [
    {'image': image, 'label': label} for image, label in zip(pictures, found.values(), strict=True)
  ]


def _read_instances(paths: tuple[Path, Path], label: np.ndarray) -> instances.Instances:
  """From the instances' file and the label's; the ids of groups have no place in 16 bits."""
  path, label_path = paths
  ids, raw = files.read_mask(path), files.read_mask(label_path)
  if ids.shape != label.shape:
    raise UserError(f'{path}: {ids.shape} pixels; expected {label.shape}, as {label_path} has')

  def meaning(value):
    if value in _GROUPS:
      return _GROUPS[value], True
    kind = value // 1000
    return (_OBJECTS[kind], False) if kind in _OBJECTS else None

  return instances.from_ids(np.where(np.isin(raw, list(_GROUPS)), raw, ids), meaning)
