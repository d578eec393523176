"""COCO-Stuff: every pixel of COCO 2017, as one of 80 kinds of things or 91 kinds of stuff.

Caesar, Uijlings, Ferrari: "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018,
https://arxiv.org/abs/1612.03716. https://github.com/nightrome/cocostuff (annotations CC BY 4.0; the
pictures, COCO's, under their Flickr licences).

`data.dir` is what the owners' setup makes of `train2017.zip`, `val2017.zip` and
`stuffthingmaps_trainval2017.zip`: `images/{train,val}2017/*.jpg`, 118287 and 5000 pictures, and
`annotations/{train,val}2017/*.png`. As many have it, the pictures may lie in `{train,val}2017/`,
and the maps in `stuffthingmaps/` or `stuffthingmaps_trainval2017/`; the first of these that is
there is taken, before `annotations/`. Other files in it (`*_labelTrainIds.png`) are left alone.

A map's value is the id of `labels.txt` less one: things 0 to 90, of which COCO never annotated 11,
so that these are an error; stuff 91 to 181; 255 is unlabelled and ignored. The 171 classes are
numbered in this order. The owners draw all things in black, so the colours are PASCAL VOC's from 1.
"""

from pathlib import Path

from seg_jax import IGNORE
from seg_jax.data.datasets.base import (
  DatasetInfo,
  check_present,
  check_split,
  dataset_dir,
  make_records,
  voc_colormap,
)
from seg_jax.data.datasets.coco import NUM_IMAGES, THINGS, images_dir
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.files import files_by_stem
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

# fmt: off
_STUFF = (  # ids 92 to 182
  'banner', 'blanket', 'branch', 'bridge', 'building-other', 'bush', 'cabinet', 'cage', 'cardboard',
  'carpet', 'ceiling-other', 'ceiling-tile', 'cloth', 'clothes', 'clouds', 'counter', 'cupboard',
  'curtain', 'desk-stuff', 'dirt', 'door-stuff', 'fence', 'floor-marble', 'floor-other',
  'floor-stone', 'floor-tile', 'floor-wood', 'flower', 'fog', 'food-other', 'fruit',
  'furniture-other', 'grass', 'gravel', 'ground-other', 'hill', 'house', 'leaves', 'light', 'mat',
  'metal', 'mirror-stuff', 'moss', 'mountain', 'mud', 'napkin', 'net', 'paper', 'pavement',
  'pillow', 'plant-other', 'plastic', 'platform', 'playingfield', 'railing', 'railroad', 'river',
  'road', 'rock', 'roof', 'rug', 'salad', 'sand', 'sea', 'shelf', 'sky-other', 'skyscraper', 'snow',
  'solid-other', 'stairs', 'stone', 'straw', 'structural-other', 'table', 'tent', 'textile-other',
  'towel', 'tree', 'vegetable', 'wall-brick', 'wall-concrete', 'wall-other', 'wall-panel',
  'wall-stone', 'wall-tile', 'wall-wood', 'water-other', 'waterdrops', 'window-blind',
  'window-other', 'wood',
)
# fmt: on
_MAPS = ('stuffthingmaps', 'stuffthingmaps_trainval2017', 'annotations')
_NAMES = {**THINGS, **dict(enumerate(_STUFF, 92))}  # by the id in labels.txt
INFO = DatasetInfo(
  'coco_stuff',
  tuple(_NAMES.values()),
  voc_colormap(1 + len(_NAMES))[1:],
  things=tuple(range(len(THINGS))),
  num_images=NUM_IMAGES,
  home='https://github.com/nightrome/cocostuff (CC BY 4.0, pictures under their Flickr licences)',
  layout=('|'.join(f'{folder}/val2017' for folder in _MAPS),),
)
INFOS = {'': INFO}
LABELS = LabelMap({**{number - 1: i for i, number in enumerate(_NAMES)}, 255: IGNORE})


def open_split(data_config, split: str, seed: int) -> FileSource:
  """`split` is train or val."""
  del seed
  root = dataset_dir(data_config, INFO)
  check_split(split, list(NUM_IMAGES))
  pictures, maps = images_dir(root, split), _maps_dir(root, split)
  stems = [stem for stem in files_by_stem(maps) if not stem.endswith('_labelTrainIds')]
  check_present([pictures / f'{stem}.jpg' for stem in stems], maps)
  records = make_records(files_by_stem(pictures), label=(maps, ''))
  return FileSource(INFO, records, LABELS, root, extras=data_config.extras)


def _maps_dir(root: Path, split: str) -> Path:
  for name in _MAPS:
    if (folder := root / name / f'{split}2017').is_dir():
      return folder
  raise UserError(f'{root}: has no maps of {split}; expected {_MAPS[0]}/{split}2017 in it')
