"""Every dataset, by the name that `config.data.name` gives it."""

from pathlib import Path

from absl import logging

from seg_jax.data.datasets import (
  ade20k,
  apolloscape,
  bdd100k,
  camvid,
  cityscapes,
  coco,
  coco_stuff,
  dsb2018,
  folder,
  isbi2012,
  kitti,
  mapillary_vistas,
  nyuv2,
  oxford_pets,
  shapes,
  tfds,
  voc2012,
)
from seg_jax.data.datasets.base import is_there
from seg_jax.data.datasets.sources import Source, cached
from seg_jax.errors import UserError, nearest

DATASETS = {
  'shapes': shapes,
  'ade20k': ade20k,
  'apolloscape': apolloscape,
  'bdd100k': bdd100k,
  'camvid': camvid,
  'cityscapes': cityscapes,
  'coco': coco,
  'coco_stuff': coco_stuff,
  'dsb2018': dsb2018,
  'folder': folder,
  'isbi2012': isbi2012,
  'kitti': kitti,
  'mapillary_vistas': mapillary_vistas,
  'nyuv2': nyuv2,
  'oxford_pets': oxford_pets,
  'tfds': tfds,
  'voc2012': voc2012,
}


def recognise(path: Path) -> str | None:
  """The dataset whose folder `path` looks like."""
  for name, module in DATASETS.items():
    layouts = [info.layout for info in getattr(module, 'INFOS', {}).values()]
    if any(layout and all(is_there(path, part) for part in layout) for layout in layouts):
      return name
  return None


def open_dataset(data_config, split: str, seed: int) -> Source:
  """The records of one split; those of files are kept in memory if they fit `cache_gib`.

  Args:
    data_config: `config.data`; reads `name`, `dir`, `variant`, `extras`, `shapes_size`,
      `channels`, `bits`, `cache_gib`, `num_workers`.
    split: `train`, `val`, ..., as the dataset calls them.
    seed: of generated scenes.

  Raises:
    UserError: an unknown dataset or split, a missing directory or mask, an empty split.
  """
  name = data_config.name
  if name not in DATASETS:
    raise UserError(f"data.name: there is no dataset '{name}'{nearest(name, DATASETS)}")
  known = getattr(DATASETS[name], 'INFOS', None)
  if known is not None and (variant := data_config.variant) not in ('', *known):
    hint = nearest(variant, known) if any(known) else '; it has only one'
    raise UserError(f"data.variant: '{name}' has no {variant!r}{hint}")
  channels, bits = data_config.channels, data_config.bits
  if name != 'folder' and (channels, bits) != (3, 8):
    raise UserError(
      f"data.channels is {channels} and data.bits {bits}; '{name}' has 3 channels of 8 bits"
    )
  source = DATASETS[name].open_split(data_config, split, seed)
  if not len(source):
    raise UserError(f"split '{split}' of {data_config.dir or name} is empty")
  official = source.info.num_images.get(split, len(source))
  if len(source) != official:
    logging.warning('%s, %s: %d pictures, officially %d', name, split, len(source), official)
  if name != 'shapes':
    processes = max(1, data_config.num_workers)  # each of them fills a cache of its own
    bytes_per_pixel = channels * bits // 8 + 1 + 4 * len(data_config.extras)
    source = cached(source, data_config.cache_gib / processes, bytes_per_pixel)
  return source
