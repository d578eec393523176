"""Any dataset of TensorFlow Datasets with pictures and masks; also what `--mode=prepare` writes.

https://www.tensorflow.org/datasets. `data.dir` is TFDS's own data directory and `data.variant` the
dataset in it, `NAME[/CONFIG][:VERSION]`; without a variant `data.dir` is the directory of one
dataset itself, with `dataset_info.json` in it. It has to be there as ArrayRecord files: nothing is
downloaded, and TensorFlow, which some datasets need for their preparation, is not needed to read.

The picture is the feature `image` (or `image_left`, or the only one with three channels), the mask
the first of those in `MASKS`. Both are decoded by our own readers, because TFDS's make colours of
palette PNGs. What the masks' values mean is known from our table of the same dataset, from the
names of a `LabeledImage`, or from a `classes.txt` in `data.dir` (see `folder.py`). Splits may be
parts, as TFDS writes them: `train[:80%]`.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files
from seg_jax.data.datasets import folder
from seg_jax.data.datasets.base import DatasetInfo, FileSource, dataset_dir, voc_colormap
from seg_jax.data.instances import Instances
from seg_jax.errors import UserError

PICTURES = ('image', 'image_left')
MASKS = ('segmentation_mask', 'segmentation_label', 'label_map', 'annotations', 'label', 'mask')
INSTANCES = ('instances', 'classes', 'is_crowd')  # features of a prepared dataset; so is `depth`
MANIFEST = 'seg_jax.json'  # in the directory of a prepared dataset; see `seg_jax.data.prepare`
_TABLES = {'cityscapes': ('cityscapes', ''), 'oxford_iiit_pet': ('oxford_pets', 'trimap')}


def open_split(data_config, split: str, seed: int) -> 'TfdsSource':
  """`split` is one of the dataset's, or a part of it."""
  del seed
  root = dataset_dir(data_config)
  builder = _builder(root, data_config.variant)
  place = Path(builder.data_dir)
  data, instructions = _data(builder, split)
  manifest = read_manifest(place)
  _check_shards(instructions, manifest)
  picture, mask = _features(builder.info.features, place)
  wanted = [picture, mask]
  if not manifest:
    names = [f'{split}/{i:06d}' for i in range(len(data))]
    records = _Records(builder, data, wanted, names)
    info, label_map = _meaning(builder, mask, root / 'classes.txt', records)
    identity = f'{builder.info.full_name} {split}'
    return TfdsSource(info, records, label_map, place, names=names, identity=identity,
                      extras=data_config.extras)  # fmt: skip
  info, label_map = read_info(manifest)
  stored = manifest['source']['extras']
  readers = {'instances': _stored_instances, 'depth': _stored_depth}
  wanted += [*INSTANCES[: 3 * ('instances' in data_config.extras)]]
  wanted += ['depth'] * ('depth' in data_config.extras)
  names, sizes = _listed(place, manifest, instructions)
  return TfdsSource(
    info,
    _Records(builder, data, wanted, names),
    label_map,
    place,
    extras=data_config.extras,
    names=names,
    sizes=sizes,
    identity=f'{info.name} {split}, sha256 {_digest(manifest, instructions)}',
    **{f'read_{extra}': readers[extra] for extra in stored},
  )
