"""COCO 2017: everyday scenes, with 80 kinds of objects as outlines, or all of it as panoptic maps.

Lin et al.: "Microsoft COCO: Common Objects in Context", ECCV 2014,
https://arxiv.org/abs/1405.0312; Kirillov et al.: "Panoptic Segmentation", CVPR 2019,
https://arxiv.org/abs/1801.00868. https://cocodataset.org (annotations CC BY 4.0; the pictures under
their Flickr licences).

`data.dir` holds `train2017/` and `val2017/`, 118287 and 5000 pictures (or both in `images/`), and
`annotations/`. The pictures of the test splits have no public labels.

Variant `instances`: `annotations/instances_{train,val}2017.json`. Objects may overlap, and each
keeps its whole mask; `iscrowd` marks a region of many. The label is 0, the background, or the
object's class; where objects of several classes overlap it is ignored, much as torchvision's
reference for segmentation ignores every overlap. A picture without annotations is all background.

Variant `panoptic`: `annotations/panoptic_{train,val}2017.json` and, unpacked from the zips that lie
in `annotations/` next to them, `panoptic_{train,val}2017/*.png` there or in `data.dir`. A pixel's
segment is R + 256 G + 65536 B, 0 is void and ignored; 80 classes of things, 53 of stuff.
"""

import json
import pickle
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.annotations import check_size, get
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_present,
  check_split,
  choose_variant,
  dataset_dir,
)
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.data.polygons import segmentation_mask
from seg_jax.errors import UserError

# As in panoptic_coco_categories.json: category id and colour; first the things, then the stuff.
# fmt: off
_CATEGORIES = {
  'person': (1, 0xDC143C), 'bicycle': (2, 0x770B20), 'car': (3, 0x00008E),
  'motorcycle': (4, 0x0000E6), 'airplane': (5, 0x6A00E4), 'bus': (6, 0x003C64),
  'train': (7, 0x005064), 'truck': (8, 0x000046), 'boat': (9, 0x0000C0),
  'traffic light': (10, 0xFAAA1E), 'fire hydrant': (11, 0x64AA1E), 'stop sign': (13, 0xDCDC00),
  'parking meter': (14, 0xAF74AF), 'bench': (15, 0xFA001E), 'bird': (16, 0xA52A2A),
  'cat': (17, 0xFF4DFF), 'dog': (18, 0x00E2FC), 'horse': (19, 0xB6B6FF), 'sheep': (20, 0x005200),
  'cow': (21, 0x78A69D), 'elephant': (22, 0x6E4C00), 'bear': (23, 0xAE39FF),
  'zebra': (24, 0xC76400), 'giraffe': (25, 0x480076), 'backpack': (27, 0xFFB3F0),
  'umbrella': (28, 0x007D5C), 'handbag': (31, 0xD10097), 'tie': (32, 0xBCD0B6),
  'suitcase': (33, 0x00DCB0), 'frisbee': (34, 0xFF63A4), 'skis': (35, 0x5C0049),
  'snowboard': (36, 0x8581FF), 'sports ball': (37, 0x4EB4FF), 'kite': (38, 0x00E400),
  'baseball bat': (39, 0xAEFFF3), 'baseball glove': (40, 0x2D59FF), 'skateboard': (41, 0x868667),
  'surfboard': (42, 0x9194AE), 'tennis racket': (43, 0xFFD0BA), 'bottle': (44, 0xC5E2FF),
  'wine glass': (46, 0xAB8601), 'cup': (47, 0x6D3F36), 'fork': (48, 0xCF8AFF),
  'knife': (49, 0x97005F), 'spoon': (50, 0x09503D), 'bowl': (51, 0x546933),
  'banana': (52, 0x4A4169), 'apple': (53, 0xA6C466), 'sandwich': (54, 0xD0C3D2),
  'orange': (55, 0xFF6D41), 'broccoli': (56, 0x008F95), 'carrot': (57, 0xB300C2),
  'hot dog': (58, 0xD1636A), 'pizza': (59, 0x057900), 'donut': (60, 0xE3FFCD),
  'cake': (61, 0x93BAD0), 'chair': (62, 0x994501), 'couch': (63, 0x035FA1),
  'potted plant': (64, 0xA3FF00), 'bed': (65, 0x7700AA), 'dining table': (67, 0x00B6C7),
  'toilet': (70, 0x00A578), 'tv': (72, 0xB78258), 'laptop': (73, 0x5F2000), 'mouse': (74, 0x827287),
  'remote': (75, 0x6E8185), 'keyboard': (76, 0xA64A76), 'cell phone': (77, 0xDB8EB9),
  'microwave': (78, 0x4FD272), 'oven': (79, 0xB25A3E), 'toaster': (80, 0x41460F),
  'sink': (81, 0x7FA773), 'refrigerator': (82, 0x3B696A), 'book': (84, 0x8E6C2D),
  'clock': (85, 0xC4AC00), 'vase': (86, 0x5F3650), 'scissors': (87, 0x804CFF),
  'teddy bear': (88, 0xC93901), 'hair drier': (89, 0xF6007A), 'toothbrush': (90, 0xBFA2D0),
  'banner': (92, 0xFFFF80), 'blanket': (93, 0x93D3CB), 'bridge': (95, 0x966464),
  'cardboard': (100, 0xA8ABAC), 'counter': (107, 0x9270C6), 'curtain': (109, 0xD2AA64),
  'door-stuff': (112, 0x5C8859), 'floor-wood': (118, 0xDA58B8), 'flower': (119, 0xF18100),
  'fruit': (122, 0xD911FF), 'gravel': (125, 0x7C4AB5), 'house': (128, 0x464646),
  'light': (130, 0xFFE4FF), 'mirror-stuff': (133, 0x9AD000), 'net': (138, 0xC1005C),
  'pillow': (141, 0x4C5B71), 'platform': (144, 0xFFB4C3), 'playingfield': (145, 0x6A9AB0),
  'railroad': (147, 0xE6968C), 'river': (148, 0x3C8FFF), 'road': (149, 0x804080),
  'roof': (151, 0x5C5237), 'sand': (154, 0xFED47C), 'sea': (155, 0x494DAE),
  'shelf': (156, 0xFFA062), 'snow': (159, 0xFFFFFF), 'stairs': (161, 0x68546D),
  'tent': (166, 0xA9A483), 'towel': (168, 0xE1C7FF), 'wall-brick': (171, 0x89364A),
  'wall-stone': (175, 0x879EDF), 'wall-tile': (176, 0x07F6E7), 'wall-wood': (177, 0x6BFFC8),
  'water-other': (178, 0x3A2995), 'window-blind': (180, 0xB7798E), 'window-other': (181, 0xFF4961),
  'tree-merged': (184, 0x6B8E23), 'fence-merged': (185, 0xBE9999),
  'ceiling-merged': (186, 0x928B8D), 'sky-other-merged': (187, 0x4682B4),
  'cabinet-merged': (188, 0x86C79C), 'table-merged': (189, 0xD1E28C),
  'floor-other-merged': (190, 0x60246C), 'pavement-merged': (191, 0x606060),
  'mountain-merged': (192, 0x40AA40), 'grass-merged': (193, 0x98FB98),
  'dirt-merged': (194, 0xD0E5E4), 'paper-merged': (195, 0xCEBAAB),
  'food-other-merged': (196, 0x98A140), 'building-other-merged': (197, 0x747000),
  'rock-merged': (198, 0x00728F), 'wall-other-merged': (199, 0x66669C),
  'rug-merged': (200, 0xFA8DFF),
}
# fmt: on
_NUM_THINGS = 80
_NAMES = tuple(_CATEGORIES)
_IDS = [category for category, _ in _CATEGORIES.values()]
_COLOURS = np.array([(c >> 16, c >> 8 & 255, c & 255) for _, c in _CATEGORIES.values()], np.uint8)
_NAME_OF = dict(zip(_IDS, _NAMES, strict=True))
THINGS = {category: _NAME_OF[category] for category in _IDS[:_NUM_THINGS]}
NUM_IMAGES = {'train': 118287, 'val': 5000}

_HOME = 'https://cocodataset.org (annotations CC BY 4.0, pictures under their Flickr licences)'
INFOS = {
  'instances': DatasetInfo(
    'coco',
    ('background', *THINGS.values()),
    np.concatenate([np.zeros((1, 3), np.uint8), _COLOURS[:_NUM_THINGS]]),
    things=tuple(range(1, 1 + _NUM_THINGS)),
    num_images=NUM_IMAGES,
    home=_HOME,
    layout=('annotations/instances_*2017.json',),
  ),
  'panoptic': DatasetInfo(
    'coco',
    _NAMES,
    _COLOURS,
    things=tuple(range(_NUM_THINGS)),
    ids=tuple(_IDS),
    num_images=NUM_IMAGES,
    home=_HOME,
    layout=('annotations/panoptic_*2017.json',),
  ),
}
# From category ids; 0 is where there is no object or no segment, 255 where objects disagree.
LABELS = {
  'instances': LabelMap({0: 0, **{c: i for i, c in enumerate(THINGS, 1)}, 255: IGNORE}),
  'panoptic': LabelMap({0: IGNORE, **{c: i for i, c in enumerate(_IDS)}}),
}


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train or val."""
  del seed
  info = choose_variant(data_config, INFOS)
  root = dataset_dir(data_config, info)
  check_split(split, list(NUM_IMAGES))
  variants = {
    'instances': (_instance_records, _read_semantic, _read_objects),
    'panoptic': (_panoptic_records, _read_categories, _read_segments),
  }
  records, read_raw, read_instances = choose_variant(data_config, variants)
  return FileSource(
    info,
    records(root, split),
    choose_variant(data_config, LABELS),
    root,
    extras=data_config.extras,
    read_raw=read_raw,
    read_instances=read_instances,
  )


def images_dir(root: Path, split: str) -> Path:
  """`train2017` or `val2017` in `root`, or in `images` there."""
  for folder in (root / f'{split}2017', root / 'images' / f'{split}2017'):
    if folder.is_dir():
      return folder
  raise UserError(f'{root}: has no {split}2017; expected the pictures of {split} there')


def _instance_records(root: Path, split: str) -> list[dict]:
  """A label is (JSON, rows, columns, packed objects), and so are the instances."""
  path = root / 'annotations' / f'instances_{split}2017.json'
  images, annotations = _load(path, THINGS)
  objects = {number: [] for number in images}
  for i, row in enumerate(annotations):
    place = f'{path}, annotations[{i}]'
    image = _one_of(images, place, row, 'image_id')
    category = _one_of(THINGS, place, row, 'category_id')
    number, crowd = get(place, row, 'id', int), get(place, row, 'iscrowd', int)
    segmentation = get(place, row, 'segmentation', (list, dict))
    objects[image].append((number, category, bool(crowd), segmentation))
  folder = images_dir(root, split)
  records = []
  for number, (name, rows, columns) in images.items():
    # Packed to a fifth: as Python's lists, those of train would fill gigabytes in every process.
    packed = zlib.compress(pickle.dumps(objects.pop(number)), level=1)
    label = (path, rows, columns, packed)
    records.append({'image': folder / name, 'label': label, 'instances': label})
  check_present([record['image'] for record in records], path)
  return records


def _objects(label: tuple) -> Iterator[tuple[int, bool, np.ndarray]]:
  """Category id, is it a crowd, and mask, bool [H, W], of each object of a picture."""
  path, rows, columns, packed = label
  for number, category, crowd, segmentation in pickle.loads(zlib.decompress(packed)):
    try:
      mask = segmentation_mask(segmentation, rows, columns)
    except ValueError as error:
      raise UserError(f'{path}: annotation {number}: {error}') from error
    yield category, crowd, mask


def _read_semantic(label: tuple) -> np.ndarray:
  """Category ids, uint8 [H, W]; 0 where no object is, 255 where several categories are."""
  raw = np.zeros(label[1:3], np.uint8)
  disputed = np.zeros(label[1:3], bool)
  for category, _, mask in _objects(label):
    disputed |= mask & (raw != 0) & (raw != category)
    raw[mask] = category
  raw[disputed] = 255
  return raw


def _read_objects(label: tuple, classes: np.ndarray) -> instances.Instances:
  del classes
  objects = list(_objects(label))
  meaning = LABELS['instances'].classes
  return instances.from_masks(
    [mask for _, _, mask in objects],
    [(meaning[category], crowd) for category, crowd, _ in objects],
    label[1:3],
  )


def _panoptic_records(root: Path, split: str) -> list[dict]:
  """A label is (PNG, segments int32 [K, 3] of id, category id, is it a crowd); row 0 is void."""
  path = root / 'annotations' / f'panoptic_{split}2017.json'
  images, annotations = _load(path, _NAME_OF)
  pictures = images_dir(root, split)
  folders = (path.with_suffix(''), root / path.stem)
  maps = next((folder for folder in folders if folder.is_dir()), None)
  if maps is None:
    raise UserError(f'{folders[0]}: no such directory; expected what is in {folders[0]}.zip')
  labels = {}
  for i, row in enumerate(annotations):
    place = f'{path}, annotations[{i}]'
    image = _one_of(images, place, row, 'image_id')
    if image in labels:
      raise UserError(f'{path}: image {image} has two annotations; expected one')
    segments = _segments(place, get(place, row, 'segments_info', list))
    labels[image] = (maps / get(place, row, 'file_name', str), segments)
  if missing := images.keys() - labels.keys():
    raise UserError(f'{path}: image {min(missing)} has no annotation; expected one for each image')
  records = [
    {'image': pictures / name, 'label': labels[number], 'instances': labels[number]}
    for number, (name, _, _) in images.items()
  ]
  check_present([record['image'] for record in records], path)
  check_present([record['label'][0] for record in records], path)
  return records


def _segments(place: str, segments: list) -> np.ndarray:
  """int32 [K, 3] of id, category id, is it a crowd, sorted by id; the first row is void."""
  rows = {0: (0, 0, 0)}
  for i, segment in enumerate(segments):
    here = f'{place}, segments_info[{i}]'
    number, crowd = get(here, segment, 'id', int), get(here, segment, 'iscrowd', int)
    if number in rows or not 0 < number < 1 << 24:
      raise UserError(f'{here}: id {number}; expected one of its own, from 1 to 16777215')
    rows[number] = number, _one_of(_NAME_OF, here, segment, 'category_id'), bool(crowd)
  return np.array([rows[number] for number in sorted(rows)], np.int32)


def _segment_rows(label: tuple[Path, np.ndarray]) -> np.ndarray:
  """For each pixel [H, W] its segment's row in the table; both hold exactly the same segments."""
  path, segments = label
  colours = files.read_mask(path).astype(np.int32)
  if colours.ndim != 3:
    raise UserError(f'{path}: a map of one channel; expected RGB, R + 256 G + 65536 B of a segment')
  ids = colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16
  rows = np.searchsorted(segments[:-1, 0], ids)
  unknown = segments[rows, 0] != ids
  if unknown.any():
    raise UserError(
      f'{path}: segment {ids[unknown][0]} is not in segments_info; expected all there'
    )
  absent = np.bincount(rows.ravel(), minlength=len(segments)) == 0
  if absent[1:].any():
    number = segments[1:][absent[1:]][0, 0]
    raise UserError(f'{path}: has no pixel of segment {number}; expected all of segments_info')
  return rows


def _read_categories(label: tuple) -> np.ndarray:
  """Category ids, uint8 [H, W], 0 = void."""
  return label[1][:, 1].astype(np.uint8)[_segment_rows(label)]


def _read_segments(label: tuple, classes: np.ndarray) -> instances.Instances:
  """The things among the segments."""
  del classes

  def meaning(row):
    _, category, crowd = label[1][row].tolist()
    return (LABELS['panoptic'].classes[category], bool(crowd)) if category in THINGS else None

  return instances.from_ids(_segment_rows(label), meaning)


def _load(path: Path, known: dict[int, str]) -> tuple[dict[int, tuple[str, int, int]], list]:
  """{image id: (file name, rows, columns)}, sorted by name, and the list of annotations."""
  try:
    content = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path}: cannot be read ({error}); expected the JSON of COCO') from error
  for i, row in enumerate(get(path, content, 'categories', list)):
    place = f'{path}, categories[{i}]'
    number, name = get(place, row, 'id', int), get(place, row, 'name', str)
    if known.get(number) != name:
      own = known.get(number, 'no such')
      raise UserError(f"{place}: {number} is '{name}'; expected COCO's own, {own}")
  images = {}
  for i, row in enumerate(get(path, content, 'images', list)):
    place = f'{path}, images[{i}]'
    number, name = get(place, row, 'id', int), get(place, row, 'file_name', str)
    if number in images or Path(name).name != name:
      raise UserError(f"{place}: {number} '{name}'; expected an id of its own, and a file's name")
    size = check_size(place, get(place, row, 'height', int), get(place, row, 'width', int))
    images[number] = name, *size
  by_name = dict(sorted(images.items(), key=lambda item: item[1]))
  return by_name, get(path, content, 'annotations', list)


def _one_of(known: Collection[int], place: str, row, key: str) -> int:
  """`row[key]`, which has to be known."""
  number = get(place, row, key, int)
  if number not in known:
    raise UserError(f'{place}: {key} {number}; expected one of the {len(known)} that there are')
  return number
