"""Devices by name: a batch is split over `data`, its rows over `space`; the rest is on all of them.

Under `parallel='jit'` one program works on global arrays, and XLA finds out what has to pass from
device to device: gradients, batch statistics, the rows beside a boundary. Under `'pmap'` each runs
the step on its share of the batch, and the step itself says what passes (`seg_jax.ops.devices`).
"""

import math
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from seg_jax import errors
from seg_jax.ops.devices import AXIS

_WITH_ROWS = ('image', 'label', 'depth')  # [N, H, W, ...] of a batch
# Rows of a crop for each device along `space`: where a backbone's coarsest map, of stride 32, has
# fewer rows than devices and the batch is split too, XLA gets some convolutions of it wrong.
_LEAST_ROWS = 32


def make_mesh(data: int = -1, space: int = 1) -> Mesh:
  """All devices as `data` x `space`; -1: as many as there are."""
  devices = jax.device_count()
  given = [n for n in (data, space) if n != -1]
  sizes = [devices // math.prod(given) if n == -1 else n for n in (data, space)]
  if not given or math.prod(sizes) != devices:
    raise errors.UserError(
      f'mesh.data is {data} and mesh.space {space}; expected a product of {devices}, the number of '
      'devices (-1: as many as there are)'
    )
  # Process by process, so that each holds whole pictures.
  ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(ordered).reshape(sizes), (AXIS, 'space'), axis_types=(AxisType.Auto,) * 2)


def mesh_of(config: ml_collections.ConfigDict, *, training: bool = False) -> Mesh:
  """The mesh that `config.mesh` describes, for evaluation, or for `training` too.

  Raises:
    UserError: it does not fit the devices, or batches or pictures cannot be shared out evenly, or
      it asks for what `jax.pmap` cannot do.
  """
  mesh = make_mesh(config.mesh.data, config.mesh.space)
  data, space = mesh.shape[AXIS], mesh.shape['space']
  multiples = [
    ('mesh.data', data, jax.process_count(), 'processes'),
    ('eval.batch_size', config.eval.batch_size, data, 'mesh.data'),
    ('eval.size_multiple', config.eval.size_multiple, space, 'mesh.space'),
  ]
  if training:
    parts = config.train.accumulation
    multiples += [
      ('data.batch_size', config.data.batch_size, data * parts, 'for each device and part'),
      ('data.crop_size[0]', config.data.crop_size[0], space, 'mesh.space'),
    ]
  for key, size, divisor, what in multiples:
    if size % divisor:
      raise errors.UserError(f'{key} is {size}; expected a multiple of {divisor} ({what})')
  rows = config.data.crop_size[0]
  if training and min(data, space) > 1 and rows < _LEAST_ROWS * space:
    raise errors.UserError(
      f'data.crop_size[0] is {rows}; expected at least {_LEAST_ROWS * space}, {_LEAST_ROWS} for '
      'each of mesh.space'
    )
  if config.parallel == 'pmap' and (space > 1 or jax.process_count() > 1):
    raise errors.UserError(
      f"parallel is 'pmap', with mesh.space {space} in {jax.process_count()} processes; expected 1 "
      'and 1, or jit'
    )
  if config.parallel == 'pmap' and config.optimizer.sharded:
    raise errors.UserError("parallel is 'pmap'; expected jit for optimizer.sharded")
  return mesh


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def sharded(mesh: Mesh, name: str, leading: int = 0) -> NamedSharding:
  """The batch's array `name`, behind `leading` axes that are not split."""
  rows = ('space',) if name in _WITH_ROWS and mesh.shape['space'] > 1 else ()
  return NamedSharding(mesh, P(*[None] * leading, AXIS, *rows))


def shard_batch(batch: dict, mesh: Mesh, leading: int = 0) -> dict:
  """The arrays of a batch, of which each process holds its own part, on the devices."""
  return {
    name: jax.make_array_from_process_local_data(sharded(mesh, name, leading), array)
    for name, array in batch.items()
  }


def shard_steps(batches: dict, mesh: Mesh, parallel: str) -> dict:
  """The same of the batches of several steps, [steps, N, ...], for `over_devices`."""
  if parallel == 'jit':
    return shard_batch(batches, mesh, leading=1)
  return {name: x.reshape(_mapped(x.shape, mesh)) for name, x in batches.items()}


def steps_like(example: dict, count: int, mesh: Mesh, parallel: str) -> dict:
  """The shapes of what `shard_steps` makes of `count` batches such as `example`."""
  shapes = {name: jax.ShapeDtypeStruct((count, *x.shape), x.dtype) for name, x in example.items()}
  if parallel == 'jit':
    return {name: placed(x, sharded(mesh, name, 1)) for name, x in shapes.items()}
  return {name: x.update(shape=_mapped(x.shape, mesh)) for name, x in shapes.items()}


def _mapped(shape, mesh):
  """[steps, N, ...] as `jax.pmap` wants it: [steps, devices, N / devices, ...]."""
  steps, size, *rest = shape
  return steps, mesh.shape[AXIS], size // mesh.shape[AXIS], *rest


def own_rows(array: jax.Array) -> np.ndarray:
  """This process's part of a batch's array."""
  if jax.process_count() == 1:
    return np.asarray(array)
  spec = array.sharding.spec
  return np.asarray(
    multihost_utils.global_array_to_host_local_array(array, array.sharding.mesh, spec)
  )


def state_shardings(shapes, mesh: Mesh, shard_optimizer: bool):
  """Where each array of a `TrainState` lies: on all devices.

  With `shard_optimizer` the optimizer's arrays are split over `data` along their longest axis that
  can be (Rajbhandari et al. 2020, ZeRO's first stage): each device updates its part of the
  parameters, and XLA gathers the parts.
  """
  shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
  if not shard_optimizer:
    return shardings

  def split(leaf):
    parts = mesh.shape[AXIS]
    lengths = [length if length % parts == 0 else 0 for length in leaf.shape]
    longest = int(np.argmax(lengths)) if any(lengths) else None
    return NamedSharding(mesh, P(*(AXIS if i == longest else None for i in range(leaf.ndim))))

  return shardings.replace(opt_state=jax.tree.map(split, shapes.opt_state))


def placed(shapes, sharding: Sharding):
  """Shapes of arrays that lie on the devices as `sharding` says, for restoring."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def over_devices(steps: Callable, shardings, mesh: Mesh, parallel: str) -> Callable:
  """`steps(state, batches, key)` compiled for all devices; the old state is given up."""
  if parallel == 'jit':
    return jax.jit(steps, donate_argnums=0, out_shardings=(shardings, None))
  # The state is the same everywhere, before and after.
  return jax.pmap(
    steps,
    AXIS,
    in_axes=(None, 1, None),
    out_axes=None,
    devices=list(mesh.devices.flat),
    donate_argnums=0,
  )
