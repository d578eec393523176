"""The picture of a split: a few records, with all that belongs to them."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from seg_jax import IGNORE, pictures
from seg_jax.data import transforms
from seg_jax.data.datasets.sources import Source
from seg_jax.ops.colour import photometric


def draw(
  source: Source, indices: Iterable[int], config: ml_collections.ConfigDict, augmented: bool
) -> np.ndarray:
  """Records, and an augmented crop of each if asked for, as uint8 [H, W, 3].

  The legend has the classes that occur in what is shown.
  """
  rows, captions, shown = [], [], set()
  for i in indices:
    record = source[i]
    versions = {'': record}
    if augmented:
      versions[', augmented'] = _augmented(record, config, i)
    for version, record in versions.items():
      shown.update(np.unique(record['label']).tolist())
      rows.append(_panels(record, source.info.palette))
      captions.append(f'{source.names[i]}{version}{_remark(record)}')
  classes = sorted(shown - {IGNORE})
  legend = [source.info.class_names[c] for c in classes], source.info.palette[classes]
  headings = ['picture', 'labels', *(key for key in ('instances', 'depth') if key in record)]
  return pictures.contact_sheet(rows, captions, legend, headings)


def _augmented(record: transforms.Record, config: ml_collections.ConfigDict, index: int):
  """A crop of a record as training makes it on the host, and its colours as on the device."""
  record = transforms.augment(record, np.random.default_rng((config.seed, index)), config.data)
  key = jax.random.fold_in(jax.random.key(config.seed), index)
  image = record['image']
  images = jnp.asarray(image[None], jnp.float32)
  changed = photometric(key, images, config.data.photometric, np.iinfo(image.dtype).max)[0]
  return {**record, 'image': np.rint(changed).astype(image.dtype)}


def _panels(record: transforms.Record, palette: np.ndarray) -> list[np.ndarray]:
  maps = [key for key in ('label', 'instances', 'depth') if key in record]
  image, *enlarged = pictures.enlarge(record['image'], *(record[key] for key in maps))
  large = dict(zip(maps, enlarged, strict=True))
  labels = pictures.overlay(image, large['label'], palette)
  ignored = large['label'] == IGNORE
  labels[ignored] = pictures.colourise(large['label'], palette)[ignored]
  panels = [image, labels]
  if 'instances' in large:
    panels.append(pictures.draw_instances(image, large['instances']))
  if 'depth' in large:
    panels.append(pictures.colour_depth(large['depth']))
  return panels


def _remark(record: transforms.Record) -> str:
  """How many objects there are, and how far the depths go."""
  remark = ''
  if 'instances' in record:
    count = np.count_nonzero(np.unique(record['instances']))
    remark += f'; {count} object{"" if count == 1 else "s"}'
  if 'depth' in record and (known := record['depth'][record['depth'] > 0]).size:
    remark += f'; {known.min():.3g} to {known.max():.3g} m'
  return remark
