"""Every dataset, by the name that `config.data.name` gives it."""

from seg_jax.data.datasets import camvid, folder, shapes
from seg_jax.data.datasets.base import FileSource, Source, cached
from seg_jax.errors import UserError, nearest

DATASETS = {
  'shapes': shapes.open_split,
  'camvid': camvid.open_split,
  'folder': folder.open_split,
}


def open_dataset(data_config, split: str, seed: int) -> Source:
  """The records of one split; those of files are kept in memory if they fit `cache_gib`.

  Args:
    data_config: `config.data`; reads `name`, `dir`, `shapes_size`, `cache_gib`, `num_workers`.
    split: `train`, `val`, ..., as the dataset calls them.
    seed: of generated scenes.

  Raises:
    UserError: an unknown dataset or split, a missing directory or mask, an empty split.
  """
  name = data_config.name
  if name not in DATASETS:
    raise UserError(f"data.name: there is no dataset '{name}'{nearest(name, DATASETS)}")
  source = DATASETS[name](data_config, split, seed)
  if not len(source):
    raise UserError(f"split '{split}' of {data_config.dir or name} is empty")
  if isinstance(source, FileSource):
    processes = max(1, data_config.num_workers)  # each of them fills a cache of its own
    source = cached(source, data_config.cache_gib / processes)
  return source
