"""Any dataset of TensorFlow Datasets with pictures and masks; also what `--mode=prepare` writes.

https://www.tensorflow.org/datasets. `data.dir` is TFDS's data directory and `data.variant` a
dataset in it, `NAME[/CONFIG][:VERSION]`; without a variant `data.dir` is the directory of one
dataset itself, with `dataset_info.json` in it. It has to be there as ArrayRecord files: nothing is
downloaded, and TensorFlow, which some datasets need for being built, is not needed to read them.

The picture is the feature `image` (or `image_left`, or the only one with three channels), the mask
the first of those in `MASKS`. Both are decoded by our own readers, because TFDS's make colours of
palette PNGs. What the mask's values mean is known from our own table of the same dataset, or from
the names of a `LabeledImage`, or from a `classes.txt` in `data.dir` (see `folder.py`). A split may
be a part of one, as TFDS writes it: `train[:80%]`.

A prepared dataset has our manifest besides, and so the names of its records, its palette, its
instances and its depth.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seg_jax import IGNORE
from seg_jax.data import files, instances
from seg_jax.data.datasets import cityscapes, oxford_pets
from seg_jax.data.datasets.base import DatasetInfo, dataset_dir, voc_colormap
from seg_jax.data.datasets.classes import MAX_CLASSES, read_classes
from seg_jax.data.datasets.sources import FileSource
from seg_jax.data.label_map import LabelMap
from seg_jax.errors import UserError

PICTURES = ('image', 'image_left')
MASKS = ('segmentation_mask', 'segmentation_label', 'label_map', 'annotations', 'label', 'mask')
MANIFEST = 'seg_jax.json'  # of a prepared dataset; `seg_jax.data.prepare` says what stands in it
RECORDS = 'seg_jax-{}.json'  # the names and sizes of the records of a split
EXTRAS = {'instances': ('instances', 'classes', 'is_crowd'), 'depth': ('depth',)}  # as features
_TABLES = {
  'cityscapes': (cityscapes.INFO, cityscapes.LABELS),
  'oxford_iiit_pet': (oxford_pets.INFOS['trimap'], oxford_pets.LABELS['trimap']),
}
_PREPARED = ('image', 'segmentation_mask')  # the features of a prepared dataset
_INFO = 'dataset_info.json'  # TFDS's, in the directory of each dataset


class TfdsSource(FileSource):
  """Records whose files are the fields of an ArrayRecord file."""

  def __init__(self, *args, identity: str, sizes: Sequence[tuple[int, int]] = (), **kwargs):
    super().__init__(*args, **kwargs)
    self._identity, self._sizes = identity, sizes

  def size(self, index: int) -> tuple[int, int]:
    return tuple(self._sizes[index]) if self._sizes else super().size(index)

  def __repr__(self) -> str:
    return f'TfdsSource({self._identity}, {len(self)} records)'


def open_split(data_config, split: str, seed: int) -> TfdsSource:
  """`split` is one of the dataset's, or a part of it."""
  del seed
  root = dataset_dir(data_config)
  builder = _builder(root, data_config.variant)
  place, features = Path(builder.data_dir), builder.info.features
  shards = _shards(builder, split)
  picture, mask = picture_and_mask(features, place)
  manifest = read_json(place / MANIFEST) if (place / MANIFEST).exists() else None
  if manifest:
    return _open_prepared(data_config.extras, builder, split, shards, manifest)
  _check_files(shards, {})
  data = _raw_records(builder, split)
  names = [f'{split}/{i:06d}' for i in range(len(data))]
  records = _Records(data, features, (picture, mask), names, place)
  masks = (files.read_mask(records[i]['label']) for i in range(min(5, len(records))))
  info, label_map = _meaning(builder.info.name, features[mask], root / 'classes.txt', masks)
  return TfdsSource(
    info,
    records,
    label_map,
    place,
    extras=data_config.extras,
    names=names,
    identity=f'{builder.info.full_name} {split}',
  )


def _open_prepared(extras, builder, split: str, shards, manifest: dict) -> TfdsSource:
  place, features = Path(builder.data_dir), builder.info.features
  known = {
    entry['file']: (of, entry) for of, entries in manifest['splits'].items() for entry in entries
  }
  _check_files(shards, {name: entry['bytes'] for name, (_, entry) in known.items()})
  listings = {of: read_json(place / RECORDS.format(of)) for of in manifest['splits']}
  names, sizes, digest = [], [], hashlib.sha256()
  for shard in shards:
    of, entry = known[Path(shard.filename).name]
    first = entry['first'] + shard.skip
    names += listings[of]['names'][first : first + shard.take]
    sizes += listings[of]['sizes'][first : first + shard.take]
    digest.update(f'{entry["sha256"]} {shard.skip} {shard.take}'.encode())
  info = manifest['info']
  info |= {'class_names': tuple(info['class_names']), 'things': tuple(info['things'])}
  info = DatasetInfo(**info | {'palette': np.array(info['palette'], np.uint8)})
  stored = manifest['source']['extras']
  wanted = [extra for extra in stored if extra in extras]
  readers = {'instances': _stored_instances, 'depth': _stored_depth}
  return TfdsSource(
    info,
    _Records(_raw_records(builder, split), features, _PREPARED, names, place, wanted),
    _one_to_one(info.num_classes),
    place,
    extras=extras,
    names=names,
    sizes=sizes,
    identity=f'{info.name} {split}, sha256 {digest.hexdigest()[:12]}',
    **{f'read_{extra}': readers[extra] for extra in stored},
  )


def _stored_instances(item: dict, label: np.ndarray) -> instances.Instances:
  del label
  ids = item['instances']  # int32 [H, W, L]
  return item | {'instances': ids[..., 0] if ids.shape[-1] == 1 else ids}


def _stored_depth(item: dict) -> np.ndarray:
  return item['depth']


class _Records(Sequence):
  """The records of `FileSource`, read when one is asked for."""

  def __init__(
    self, data, features, keys: tuple[str, str], names: Sequence[str], place: Path, extras=()
  ):
    import tensorflow_datasets as tfds

    wanted = [*keys, *(key for extra in extras for key in EXTRAS[extra])]
    self._features = tfds.features.FeaturesDict({key: features[key] for key in wanted})
    self._decoders = dict.fromkeys(keys, tfds.decode.SkipDecoding())
    self._data, self._keys, self._names, self._place = data, keys, names, place
    self._extras = extras

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, index: int) -> dict:
    index = range(len(self))[index]
    name = f'{self._names[index]} in {self._place}'
    try:
      fields = self._features.deserialize_example_np(self._data[index], decoders=self._decoders)
    except Exception as error:  # whatever ArrayRecord's reader and protobuf raise
      raise UserError(f'{name}: cannot be read ({error!r}); expected whole files') from error
    picture, mask = self._keys
    record = {
      'image': files.Encoded(fields[picture], name),
      'label': files.Encoded(fields[mask], f'{name} ({mask})'),
    }
    return record | {extra: {key: fields[key] for key in EXTRAS[extra]} for extra in self._extras}


def _builder(root: Path, variant: str):
  """TFDS's builder of what is in `root` already."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  where = f"'{variant.partition(':')[0]}', data_dir='{root}'" if variant else 'NAME, data_dir=DIR'
  build = f"tfds.builder({where}, file_format='array_record').download_and_prepare()"
  if not variant and not (root / _INFO).exists():
    hint = 'run the same --mode=prepare again, which was not finished'
    if not (root / MANIFEST).exists():
      hint = f'expected the directory of one dataset, or its name in data.variant; {_below(root)}'
    raise UserError(f'data.dir: {root} has no {_INFO}; {hint}')
  try:
    if not variant:
      return tfds.builder_from_directory(str(root), file_format='array_record')
    return read_only_builder.builder_from_files(
      variant, data_dir=str(root), file_format='array_record'
    )
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f"data.variant: there is no '{variant}' in {root}; nothing is downloaded, expected what"
      f' {build} makes; {_below(root)}'
    ) from error
  except Exception as error:  # TFDS raises anything for what it cannot read
    place = f"'{variant}' in {root}" if variant else root
    made = f'{build} makes'
    if (root / MANIFEST).exists():
      made = '--mode=prepare wrote: the same again repairs'
    raise UserError(
      f'data.dir: {place} cannot be opened ({error}); expected what {made}'
    ) from error


def _below(root: Path) -> str:
  """What `data.variant` could name."""
  found = [path.parent for stars in ('*', '*/*', '*/*/*') for path in root.glob(f'{stars}/{_INFO}')]
  names = [':'.join(path.relative_to(root).as_posix().rsplit('/', 1)) for path in sorted(found)]
  return f'there is {", ".join(names) or "no dataset"} in it'


def _shards(builder, split: str) -> list:
  """TFDS's `FileInstruction` of each shard: `filename`, and which records by `skip` and `take`."""
  known = builder.info.splits
  try:
    if shards := known[split].file_instructions:
      return shards
    raise UserError(f"split '{split}' of {builder.data_dir} is empty")
  except (ValueError, KeyError) as error:
    raise UserError(
      f"there is no split '{split}'; expected one of {', '.join(known)}, or a part of one, such as"
      f' {next(iter(known), "train")}[:80%]'
    ) from error


def _check_files(shards, expected_bytes: dict[str, int]) -> None:
  for shard in shards:
    path = Path(shard.filename)
    size = path.stat().st_size if path.exists() else None
    expected = expected_bytes.get(path.name, size)
    if size is None:
      raise UserError(f'{path} is missing; expected all files of the dataset')
    if size != expected:
      raise UserError(
        f'{path} has {size:,} bytes; expected {expected:,}: the same --mode=prepare again repairs'
      )


def _raw_records(builder, split: str):
  import tensorflow_datasets as tfds

  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  return builder.as_data_source(split, deserialize_method=raw)


def picture_and_mask(features, place: Path) -> tuple[str, str]:
  """Which features they are."""
  import tensorflow_datasets as tfds

  pictures = {
    key: feature for key, feature in features.items() if isinstance(feature, tfds.features.Image)
  }
  mask = next((key for key in MASKS if key in pictures), None)
  coloured = [
    key for key, feature in pictures.items() if key not in MASKS and feature.shape[-1] == 3
  ]
  picture = next((key for key in PICTURES if key in pictures), None)
  if picture is None and len(coloured) == 1:
    picture = coloured[0]
  if picture is None or mask is None:
    there = ', '.join(f'{key} ({type(feature).__name__})' for key, feature in features.items())
    lacks = f'a mask, an image called {" or ".join(MASKS)}'
    if picture is None:
      lacks = f'a picture, an image called {" or ".join(PICTURES)}'
    raise UserError(f'{place}: expected {lacks}, among the features {there}')
  return picture, mask


def _meaning(name: str, feature, classes: Path, masks) -> tuple[DatasetInfo, LabelMap]:
  """The classes, and what they look like in the masks."""
  if name in _TABLES:
    return _TABLES[name]
  count = getattr(feature, 'num_classes', None)
  if not count:
    info, label_map = read_classes(classes, masks)
    return dataclasses.replace(info, name=name), label_map
  if count > MAX_CLASSES:
    raise UserError(f"'{name}' has {count} classes; expected at most {MAX_CLASSES}")
  return DatasetInfo(name, tuple(feature.names), voc_colormap(count)), _one_to_one(count, True)


def _one_to_one(num_classes: int, ignore_is_assumed: bool = False) -> LabelMap:
  return LabelMap({**{i: i for i in range(num_classes)}, IGNORE: IGNORE}, ignore_is_assumed)


def read_json(path: Path) -> dict:
  """One of the files that preparing leaves beside the shards."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(
      f'{path}: cannot be read ({error}); expected what --mode=prepare wrote'
    ) from error
