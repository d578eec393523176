"""A trained model as a file for other programs."""

from pathlib import Path

import jax
import ml_collections

from seg_jax.errors import UserError
from seg_jax.training import checkpoints
from seg_jax.training.mesh import make_mesh
from seg_jax.weights import convert, files, load, names


def export(config: ml_collections.ConfigDict, workdir: Path, output: Path | None = None) -> None:
  """Writes the weights of a checkpoint of `workdir` with the names of torchvision's model.

  The file is `output`, or `export/NAME.safetensors` in `workdir`.

  Raises:
    UserError: torchvision has no such model, there is no checkpoint, or nothing can be written.
  """
  path = output or workdir / 'export' / f'{config.name}.safetensors'
  if path.suffix != '.safetensors':
    raise UserError(f'--output={path} is expected to end in .safetensors')
  table = names.whole(config.model.to_dict())
  step, variables, info = checkpoints.load_variables(config, workdir, make_mesh())
  arrays, nameless = convert.to_torch(load.flat(jax.device_get(variables)), table)
  if nameless:
    raise UserError(
      f'{workdir}: torchvision has no model with {load.listed(nameless)}; expected the layers that '
      f'{config.model.name} has by default'
    )
  try:
    files.write(path, arrays)
  except OSError as error:
    raise UserError(f'{path} cannot be written ({error.strerror or error})') from error
  print(
    f'weights of step {step}, {len(arrays)} arrays by the names of torchvision, '
    f'{info.num_classes} classes: {path}'
  )
