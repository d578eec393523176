"""`--mode=prepare`: a dataset as a few large files, for disks on which many small ones are slow.

They are ArrayRecord files as TFDS writes them, in `WORKDIR/prepared`, for anyone's
`tfds.builder_from_directory`; `--config.data.name=tfds --config.data.dir=WORKDIR/prepared` trains
on the same pictures, bit for bit, as the dataset itself. A record has the features `name`, `image`
(the file as it was, if a JPEG or PNG that TFDS reads as we do; else a PNG), `segmentation_mask` (an
8-bit grey PNG of classes, 255 = ignore), and those of `data.extras`: `instances` int32 [H, W, L]
with `classes` and `is_crowd`, and `depth` float32 [H, W] in metres.

Beside them `seg_jax.json` has the facts of the dataset and the shards' sizes and checksums, and
`seg_jax-SPLIT.json` the names and sizes of the records. A shard has its name only when it is whole.
What was stopped goes on at the first shard that is missing, and ends with the same bytes. Masks
that are edited under their old names are not noticed: prepare them anew, with another --workdir.
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import ml_collections
import numpy as np
from tqdm import tqdm

from seg_jax import atomic, settings
from seg_jax.data import files
from seg_jax.data.datasets import open_dataset
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.data.datasets.sources import Source
from seg_jax.data.datasets.tfds import MANIFEST, RECORDS, read_json
from seg_jax.data.label_map import meanings
from seg_jax.errors import RunError, UserError

SHARD_BYTES = 160e6  # about; a split of more has shards of 107 to 240 MB
_SAMPLES = 16  # records from which the number of shards is estimated


def prepare(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Writes the splits that `config` trains and evaluates on into `workdir/prepared`.

  Raises:
    UserError: a record cannot be read; another dataset is there already.
    RunError: the files cannot be written, as when a disk is full.
  """
  data_config = ml_collections.ConfigDict(config.data)
  data_config.cache_gib = 0.0  # everything is read once
  if (data_config.channels, data_config.bits) != (3, 8):
    raise UserError(
      f'data.channels is {data_config.channels} and data.bits {data_config.bits}; only pictures of'
      ' 3 channels of 8 bits can be prepared'
    )
  folder = Path(workdir) / 'prepared'
  splits = dict.fromkeys([config.train.split, *settings.eval_splits(config)])
  for split in splits:
    if not re.fullmatch(r'[\w-]+', split):
      raise UserError(f"split '{split}' cannot be prepared; expected a name without brackets")
  sources = {split: open_dataset(data_config, split, config.seed) for split in splits}
  serialise = _Serialiser(next(iter(sources.values())).info, data_config.extras)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be written to ({error})') from error
  try:
    _prepare(folder, data_config, sources, serialise)
  except OSError as error:
    raise RunError(f'{folder} cannot be written ({error})') from error


def _prepare(folder: Path, data_config, sources: dict[str, Source], serialise) -> None:
  for leftover in folder.glob('.*.[0-9]*'):  # of a run that was killed
    leftover.unlink()
  with ThreadPool(min(16, os.cpu_count() or 1)) as pool:
    manifest = _manifest(folder, data_config, sources, serialise, pool)
    for split, source in sources.items():
      rows = {'names': list(source.names), 'sizes': pool.map(source.size, range(len(source)))}
      _write_json(folder / RECORDS.format(split), rows)
    missing = _missing_shards(folder, manifest)
    todo = sum(shard['count'] for _, shard in missing)
    with tqdm(total=todo, unit='image', disable=None, dynamic_ncols=True) as bar:
      for split, shard in missing:
        bar.set_description(split)
        source, first = sources[split], shard['first']
        indices = range(first, first + shard['count'])
        examples = pool.imap(lambda i, source=source: serialise(source, i), indices)
        shard |= _write_shard(folder / shard['file'], examples, bar)
        _write_json(folder / MANIFEST, manifest, indent=1)
  serialise.write_metadata(folder, manifest)
  shards = [shard for entries in manifest['splits'].values() for shard in entries]
  if missing:
    print(
      f'{folder}: {sum(shard["count"] for shard in shards):,} records in {len(shards)} shards,'
      f' {sum(shard["bytes"] for shard in shards) / 1e6:,.1f} MB; use them with'
      f' --config.data.name=tfds --config.data.dir={folder}'
    )
  else:
    print(f'{folder}: nothing to do, {len(shards)} shards verified')


def _manifest(folder: Path, data_config, sources: dict[str, Source], serialise, pool) -> dict:
  """What is to be written, found in `folder` or else planned.

  `source` says what of, `info` are the facts of the dataset, `splits` has for each split its
  shards: `file`, `first` and `count` of the records, and `bytes` and `sha256` once it is there.
  """
  path, first = folder / MANIFEST, next(iter(sources.values()))
  info = first.info
  label_map = getattr(first, 'label_map', None)  # generated scenes have none
  of = {
    'name': data_config.name,
    'variant': data_config.variant,
    'extras': sorted(data_config.extras),
    'classes': {str(i): name for i, name in enumerate(info.class_names)},
    'values': meanings(label_map, info.class_names) if label_map else {},
    'splits': {split: repr(source) for split, source in sources.items()},
  }
  if path.exists():
    manifest = read_json(path)
    if differences := _differences(manifest['source'], of):
      raise UserError(
        f'{folder} holds another dataset: {"; ".join(differences[:4])}; expected another --workdir'
      )
    return manifest
  info = dataclasses.asdict(info)
  del info['layout']
  info |= {'palette': info['palette'].tolist(), 'num_images': dict(info['num_images'])}
  manifest = {'source': of, 'info': info, 'splits': {}}
  for split, source in sources.items():
    chosen = np.linspace(0, len(source) - 1, _SAMPLES, dtype=int).tolist()
    sizes = pool.map(lambda i, source=source: len(serialise(source, i)), dict.fromkeys(chosen))
    total = sum(sizes) / len(sizes) * len(source)
    count = min(max(1, round(total / SHARD_BYTES)), len(source))
    name = f'{serialise.name}-{split}.array_record'
    bounds = [len(source) * i // count for i in range(count + 1)]
    manifest['splits'][split] = [
      {
        'file': f'{name}-{i:05d}-of-{count:05d}',
        'first': bounds[i],
        'count': bounds[i + 1] - bounds[i],
        'bytes': None,
        'sha256': None,
      }
      for i in range(count)
    ]
  _write_json(path, manifest, indent=1)
  return manifest


def _differences(there: dict, here: dict) -> list[str]:
  there, here = settings.flat(there), settings.flat(here)
  return [
    f'{key} is {there.get(key)} there and {here.get(key)} here'
    for key in dict.fromkeys([*here, *there])
    if there.get(key) != here.get(key)
  ]


def _missing_shards(folder: Path, manifest: dict) -> list[tuple[str, dict]]:
  """(split, shard) of those that are not there, or are not what was written."""
  missing = []
  for split, shards in manifest['splits'].items():
    for shard in tqdm(shards, f'{split}: verifying', unit='shard', leave=False, disable=None):
      path = folder / shard['file']
      if not path.exists() or _checksum(path) != {k: shard[k] for k in ('bytes', 'sha256')}:
        missing.append((split, shard))
  return missing


def _write_shard(path: Path, examples: Iterator[bytes], bar: tqdm) -> dict:
  """The size and checksum of the shard, which is at `path` when it is whole, and not before."""
  from array_record.python.array_record_module import ArrayRecordWriter

  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    try:
      # For random access to what is compressed already.
      writer = ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
      for example in examples:
        writer.write(example)
        bar.update()
      writer.close()
    except RuntimeError as error:  # the writer's only one
      raise OSError(error) from error
    checksum = _checksum(temporary)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return checksum


def _checksum(path: Path) -> dict:
  with path.open('rb') as file:
    return {
      'bytes': path.stat().st_size,
      'sha256': hashlib.file_digest(file, 'sha256').hexdigest(),
    }


def _write_json(path: Path, values: dict, indent: int | None = None) -> None:
  atomic.write_bytes(path, (json.dumps(values, indent=indent) + '\n').encode())


class _Serialiser:
  """Records of a source as the bytes of TFDS's examples."""

  def __init__(self, info: DatasetInfo, extras):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    self.name = re.sub(r'\W', '_', info.name)
    self._info, self._extras, f = info, extras, tfds.features
    features = {
      'name': f.Text(),
      'image': f.Image(),
      'segmentation_mask': f.LabeledImage(
        labels=list(info.class_names), shape=(None, None, 1), encoding_format='png'
      ),
    }
    if 'instances' in extras:
      features |= {
        'instances': f.Tensor(shape=(None, None, None), dtype=np.int32, encoding='zlib'),
        'classes': f.Tensor(shape=(None,), dtype=np.int32),
        'is_crowd': f.Tensor(shape=(None,), dtype=np.bool_),
      }
    if 'depth' in extras:
      features['depth'] = f.Tensor(shape=(None, None), dtype=np.float32, encoding='zlib')
    self._features = f.FeaturesDict(features)
    self._to_proto = ExampleSerializer(self._features.get_serialized_info()).get_tf_example

  def __call__(self, source: Source, index: int) -> bytes:
    record = source[index]
    example = {
      **record,
      'name': source.names[index],
      'image': _image_file(source, index, record['image']),
      'segmentation_mask': _png(record['label']),
    }
    del example['label']
    if 'instances' in example:
      rows, columns = record['label'].shape
      example['instances'] = example['instances'].reshape(rows, columns, -1)
    # The fields of a proto have no order unless one asks for it.
    encoded = self._features.encode_example(example)
    return self._to_proto(encoded).SerializeToString(deterministic=True)

  def write_metadata(self, folder: Path, manifest: dict) -> None:
    """TFDS's own files, the one that says that the dataset is there at last."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity
    from tensorflow_datasets.core.file_adapters import FileFormat
    from tensorflow_datasets.core.splits import SplitDict

    info = tfds.core.DatasetInfo(
      builder=DatasetIdentity(self.name, tfds.core.Version('1.0.0'), str(folder), ''),
      description=f'{self._info.name}, prepared by seg_jax. From: {self._info.home}',
      features=self._features,
      supervised_keys=('image', 'segmentation_mask'),
      disable_shuffling=True,
    )
    info.set_file_format(FileFormat.ARRAY_RECORD)
    splits = [
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard['count'] for shard in shards],
        num_bytes=sum(shard['bytes'] for shard in shards),
      )
      for split, shards in manifest['splits'].items()
    ]
    info.set_splits(SplitDict(splits))
    with tempfile.TemporaryDirectory() as made:
      info.write_to_directory(made)
      for path in sorted(Path(made).iterdir(), key=lambda path: path.name == 'dataset_info.json'):
        atomic.write_bytes(folder / path.name, path.read_bytes())


def _image_file(source: Source, index: int, image: np.ndarray) -> bytes:
  """The picture's own file, if any reader makes the same pixels of it; else a PNG."""
  if hasattr(source, 'records'):
    file = source.records[index]['image']
    data = file.read_bytes() if isinstance(file, Path) else getattr(file, 'data', b'')
    stored = files.Encoded(data, str(file))
    if data.startswith((b'\xff\xd8', b'\x89PNG')):  # JPEG or PNG
      mode, orientation = files.image_storage(stored)
      plain = mode in ('RGB', 'L') and orientation == 1  # TFDS turns none, and keeps alpha
      if plain and np.array_equal(files.read_image(stored), image):
        return data
  return _png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def _png(array: np.ndarray) -> bytes:
  return cv2.imencode('.png', array)[1].tobytes()
