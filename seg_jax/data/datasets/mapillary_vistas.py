"""Mapillary Vistas: streets of the whole world, 66 labels (v1.2) or 124 (v2.0), with instances.

Neuhold, Ollmann, Rota Bulo, Kontschieder: "The Mapillary Vistas Dataset for Semantic Understanding
of Street Scenes", ICCV 2017. https://www.mapillary.com/dataset/vistas (registration; research only,
CC BY-NC-SA).

`data.dir` holds `training/` and `validation/`, 18000 and 2000 pictures in `images/*.jpg`, whose
sizes differ. Besides them lie `labels/*.png` (palette PNG) and `instances/*.png`: directly in it in
the releases 1.0 to 1.2, in `v1.2/` and in `v2.0/` in the release 2.0, which has both.

A class is the owners' label, number for number, so that predictions are what their tools take. The
labels that they do not evaluate are ignored, and so never occur as truth: in v1.2 `Unlabeled`,
which leaves the 65 of publications, and in v2.0 `Unlabeled`, three groups and four ambiguous ones,
which leaves 116. (MMSegmentation counts them all as classes.) The names, the colours and what is
evaluated are those of `config_v1.2.json`, `config.json` or `config_v2.0.json` in `data.dir`; the
same tables stand here in case it is not there.

Instances are label * 256 + n in 16 bits, where n counts from 0 for each label, so 0 is an object
too. They mark no crowds; the groups of v2.0 have no object. `panoptic/` is not read.
"""

import functools
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_split,
  dataset_dir,
  make_records,
  variant_of,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

_THING, _STUFF, _VOID = 't', 's', 'v'  # has instances; has none; is not evaluated
_Label = tuple[str, str, int, int, int]  # name, one of these, colour

# fmt: off
_V1_2: tuple[_Label, ...] = (
  ('Bird', 't', 165, 42, 42), ('Ground Animal', 't', 0, 192, 0), ('Curb', 's', 196, 196, 196),
  ('Fence', 's', 190, 153, 153), ('Guard Rail', 's', 180, 165, 180), ('Barrier', 's', 90, 120, 150),
  ('Wall', 's', 102, 102, 156), ('Bike Lane', 's', 128, 64, 255),
  ('Crosswalk - Plain', 't', 140, 140, 200), ('Curb Cut', 's', 170, 170, 170),
  ('Parking', 's', 250, 170, 160), ('Pedestrian Area', 's', 96, 96, 96),
  ('Rail Track', 's', 230, 150, 140), ('Road', 's', 128, 64, 128),
  ('Service Lane', 's', 110, 110, 110), ('Sidewalk', 's', 244, 35, 232),
  ('Bridge', 's', 150, 100, 100), ('Building', 's', 70, 70, 70), ('Tunnel', 's', 150, 120, 90),
  ('Person', 't', 220, 20, 60), ('Bicyclist', 't', 255, 0, 0), ('Motorcyclist', 't', 255, 0, 100),
  ('Other Rider', 't', 255, 0, 200), ('Lane Marking - Crosswalk', 't', 200, 128, 128),
  ('Lane Marking - General', 's', 255, 255, 255), ('Mountain', 's', 64, 170, 64),
  ('Sand', 's', 230, 160, 50), ('Sky', 's', 70, 130, 180), ('Snow', 's', 190, 255, 255),
  ('Terrain', 's', 152, 251, 152), ('Vegetation', 's', 107, 142, 35), ('Water', 's', 0, 170, 30),
  ('Banner', 't', 255, 255, 128), ('Bench', 't', 250, 0, 30), ('Bike Rack', 't', 100, 140, 180),
  ('Billboard', 't', 220, 220, 220), ('Catch Basin', 't', 220, 128, 128),
  ('CCTV Camera', 't', 222, 40, 40), ('Fire Hydrant', 't', 100, 170, 30),
  ('Junction Box', 't', 40, 40, 40), ('Mailbox', 't', 33, 33, 33), ('Manhole', 't', 100, 128, 160),
  ('Phone Booth', 't', 142, 0, 0), ('Pothole', 's', 70, 100, 150),
  ('Street Light', 't', 210, 170, 100), ('Pole', 't', 153, 153, 153),
  ('Traffic Sign Frame', 't', 128, 128, 128), ('Utility Pole', 't', 0, 0, 80),
  ('Traffic Light', 't', 250, 170, 30), ('Traffic Sign (Back)', 't', 192, 192, 192),
  ('Traffic Sign (Front)', 't', 220, 220, 0), ('Trash Can', 't', 140, 140, 20),
  ('Bicycle', 't', 119, 11, 32), ('Boat', 't', 150, 0, 255), ('Bus', 't', 0, 60, 100),
  ('Car', 't', 0, 0, 142), ('Caravan', 't', 0, 0, 90), ('Motorcycle', 't', 0, 0, 230),
  ('On Rails', 's', 0, 80, 100), ('Other Vehicle', 't', 128, 64, 64), ('Trailer', 't', 0, 0, 110),
  ('Truck', 't', 0, 0, 70), ('Wheeled Slow', 't', 0, 0, 192), ('Car Mount', 's', 32, 32, 32),
  ('Ego Vehicle', 's', 120, 10, 10), ('Unlabeled', 'v', 0, 0, 0),
)
_V2_0: tuple[_Label, ...] = (
  ('Bird', 't', 165, 42, 42), ('Ground Animal', 't', 0, 192, 0),
  ('Ambiguous Barrier', 'v', 250, 170, 31), ('Concrete Block', 's', 250, 170, 32),
  ('Curb', 's', 196, 196, 196), ('Fence', 's', 190, 153, 153), ('Guard Rail', 's', 180, 165, 180),
  ('Barrier', 's', 90, 120, 150), ('Road Median', 's', 250, 170, 33),
  ('Road Side', 's', 250, 170, 34), ('Lane Separator', 's', 128, 128, 128),
  ('Temporary Barrier', 't', 250, 170, 35), ('Wall', 's', 102, 102, 156),
  ('Bike Lane', 's', 128, 64, 255), ('Crosswalk - Plain', 't', 140, 140, 200),
  ('Curb Cut', 's', 170, 170, 170), ('Driveway', 't', 250, 170, 36),
  ('Parking', 's', 250, 170, 160), ('Parking Aisle', 's', 250, 170, 37),
  ('Pedestrian Area', 's', 96, 96, 96), ('Rail Track', 's', 230, 150, 140),
  ('Road', 's', 128, 64, 128), ('Road Shoulder', 's', 110, 110, 110),
  ('Service Lane', 's', 110, 110, 110), ('Sidewalk', 's', 244, 35, 232),
  ('Traffic Island', 's', 128, 196, 128), ('Bridge', 's', 150, 100, 100),
  ('Building', 's', 70, 70, 70), ('Garage', 's', 150, 150, 150), ('Tunnel', 's', 150, 120, 90),
  ('Person', 't', 220, 20, 60), ('Person Group', 'v', 220, 20, 60), ('Bicyclist', 't', 255, 0, 0),
  ('Motorcyclist', 't', 255, 0, 100), ('Other Rider', 't', 255, 0, 200),
  ('Lane Marking - Dashed Line', 's', 255, 255, 255),
  ('Lane Marking - Straight Line', 's', 255, 255, 255),
  ('Lane Marking - Zigzag Line', 's', 250, 170, 29),
  ('Lane Marking - Ambiguous', 'v', 250, 170, 28),
  ('Lane Marking - Arrow (Left)', 't', 250, 170, 26),
  ('Lane Marking - Arrow (Other)', 't', 250, 170, 25),
  ('Lane Marking - Arrow (Right)', 't', 250, 170, 24),
  ('Lane Marking - Arrow (Split Left or Straight)', 't', 250, 170, 22),
  ('Lane Marking - Arrow (Split Right or Straight)', 't', 250, 170, 21),
  ('Lane Marking - Arrow (Straight)', 't', 250, 170, 20),
  ('Lane Marking - Crosswalk', 't', 255, 255, 255),
  ('Lane Marking - Give Way (Row)', 't', 250, 170, 19),
  ('Lane Marking - Give Way (Single)', 't', 250, 170, 18),
  ('Lane Marking - Hatched (Chevron)', 's', 250, 170, 12),
  ('Lane Marking - Hatched (Diagonal)', 's', 250, 170, 11),
  ('Lane Marking - Other', 't', 255, 255, 255), ('Lane Marking - Stop Line', 't', 255, 255, 255),
  ('Lane Marking - Symbol (Bicycle)', 't', 250, 170, 16),
  ('Lane Marking - Symbol (Other)', 't', 250, 170, 15), ('Lane Marking - Text', 't', 250, 170, 15),
  ('Lane Marking (only) - Dashed Line', 's', 255, 255, 255),
  ('Lane Marking (only) - Crosswalk', 's', 255, 255, 255),
  ('Lane Marking (only) - Other', 's', 255, 255, 255),
  ('Lane Marking (only) - Test', 's', 255, 255, 255), ('Mountain', 's', 64, 170, 64),
  ('Sand', 's', 230, 160, 50), ('Sky', 's', 70, 130, 180), ('Snow', 's', 190, 255, 255),
  ('Terrain', 's', 152, 251, 152), ('Vegetation', 's', 107, 142, 35), ('Water', 's', 0, 170, 30),
  ('Banner', 't', 255, 255, 128), ('Bench', 't', 250, 0, 30), ('Bike Rack', 't', 100, 140, 180),
  ('Catch Basin', 't', 220, 128, 128), ('CCTV Camera', 't', 222, 40, 40),
  ('Fire Hydrant', 't', 100, 170, 30), ('Junction Box', 't', 40, 40, 40),
  ('Mailbox', 't', 33, 33, 33), ('Manhole', 't', 100, 128, 160),
  ('Parking Meter', 't', 20, 20, 255), ('Phone Booth', 't', 142, 0, 0),
  ('Pothole', 's', 70, 100, 150), ('Signage - Advertisement', 't', 250, 171, 30),
  ('Signage - Ambiguous', 'v', 250, 172, 30), ('Signage - Back', 't', 250, 173, 30),
  ('Signage - Information', 't', 250, 174, 30), ('Signage - Other', 't', 250, 175, 30),
  ('Signage - Store', 't', 250, 176, 30), ('Street Light', 't', 210, 170, 100),
  ('Pole', 't', 153, 153, 153), ('Pole Group', 'v', 153, 153, 153),
  ('Traffic Sign Frame', 't', 128, 128, 128), ('Utility Pole', 't', 0, 0, 80),
  ('Traffic Cone', 't', 210, 60, 60), ('Traffic Light - General (Single)', 't', 250, 170, 30),
  ('Traffic Light - Pedestrians', 't', 250, 170, 30),
  ('Traffic Light - General (Upright)', 't', 250, 170, 30),
  ('Traffic Light - General (Horizontal)', 't', 250, 170, 30),
  ('Traffic Light - Cyclists', 't', 250, 170, 30), ('Traffic Light - Other', 't', 250, 170, 30),
  ('Traffic Sign - Ambiguous', 'v', 192, 192, 192), ('Traffic Sign (Back)', 't', 192, 192, 192),
  ('Traffic Sign - Direction (Back)', 't', 192, 192, 192),
  ('Traffic Sign - Direction (Front)', 't', 220, 220, 0),
  ('Traffic Sign (Front)', 't', 220, 220, 0), ('Traffic Sign - Parking', 't', 0, 0, 196),
  ('Traffic Sign - Temporary (Back)', 't', 192, 192, 192),
  ('Traffic Sign - Temporary (Front)', 't', 220, 220, 0), ('Trash Can', 't', 140, 140, 20),
  ('Bicycle', 't', 119, 11, 32), ('Boat', 't', 150, 0, 255), ('Bus', 't', 0, 60, 100),
  ('Car', 't', 0, 0, 142), ('Caravan', 't', 0, 0, 90), ('Motorcycle', 't', 0, 0, 230),
  ('On Rails', 't', 0, 80, 100), ('Other Vehicle', 't', 128, 64, 64), ('Trailer', 't', 0, 0, 110),
  ('Truck', 't', 0, 0, 70), ('Vehicle Group', 'v', 0, 0, 142), ('Wheeled Slow', 't', 0, 0, 192),
  ('Water Valve', 't', 170, 170, 170), ('Car Mount', 's', 32, 32, 32), ('Dynamic', 's', 111, 74, 0),
  ('Ego Vehicle', 's', 120, 10, 10), ('Ground', 's', 81, 0, 81), ('Static', 's', 111, 111, 0),
  ('Unlabeled', 'v', 0, 0, 0),
)
# fmt: on
_FOLDERS = {'train': 'training', 'val': 'validation'}
_CONFIGS = {'v1.2': ('config_v1.2.json', 'config.json'), 'v2.0': ('config_v2.0.json',)}


def _tables(labels: Sequence[_Label], layout: str) -> tuple[DatasetInfo, LabelMap]:
  names, kinds, red, green, blue = zip(*labels, strict=True)
  info = DatasetInfo(
    'mapillary_vistas',
    names,
    np.array([red, green, blue], np.uint8).T,
    things=tuple(i for i, kind in enumerate(kinds) if kind == _THING),
    num_images={'train': 18000, 'val': 2000},
    home='https://www.mapillary.com/dataset/vistas (registration; research only, CC BY-NC-SA)',
    layout=('training/images', layout),
  )
  return info, LabelMap({i: IGNORE if kind == _VOID else i for i, kind in enumerate(kinds)})


_TABLES = {
  'v1.2': _tables(_V1_2, 'training/labels|training/v1.2/labels'),
  'v2.0': _tables(_V2_0, 'training/v2.0/labels'),
}
INFOS = {variant: info for variant, (info, _) in _TABLES.items()}
LABELS = {variant: label_map for variant, (_, label_map) in _TABLES.items()}


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train or val; testing has no public labels."""
  del seed
  variant = variant_of(data_config, INFOS)
  root = dataset_dir(data_config, INFOS[variant])
  check_split(split, list(_FOLDERS))
  info, label_map = _tables_of(root, variant)
  folder = root / _FOLDERS[split]
  versioned = folder / variant
  annotations = versioned if versioned.is_dir() else folder
  records = make_records(
    files.files_by_stem(folder / 'images'),
    data_config.extras,
    label=(annotations / 'labels', ''),
    instances=(annotations / 'instances', ''),
  )
  return FileSource(
    info,
    records,
    label_map,
    root,
    extras=data_config.extras,
    read_instances=functools.partial(_read_instances, things=info.things),
  )


def _tables_of(root: Path, variant: str) -> tuple[DatasetInfo, LabelMap]:
  """What the owners' own file in `root` says; the tables above if there is none."""
  path = next((root / name for name in _CONFIGS[variant] if (root / name).is_file()), None)
  if path is None:
    return _TABLES[variant]
  expected = INFOS[variant]
  try:
    rows = json.loads(path.read_text('utf-8'))['labels']
    labels = [(row['readable'], _kind(row), *row['color']) for row in rows]
    if len(labels) != expected.num_classes:
      raise ValueError(f'{len(labels)} labels')
    return _tables(labels, expected.layout[1])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path}: cannot be used ({error!r}); expected the {expected.num_classes} labels of Mapillary'
      f' Vistas {variant}, each with readable, color, instances and evaluate'
    ) from error


def _kind(row: dict) -> str:
  if not row['evaluate']:
    return _VOID
  return _THING if row['instances'] else _STUFF


def _read_instances(path: Path, label: np.ndarray, things: Collection[int]) -> instances.Instances:
  del label
  return instances.from_ids(
    files.read_mask(path), lambda value: (value >> 8, False) if value >> 8 in things else None
  )
