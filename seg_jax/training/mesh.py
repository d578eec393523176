"""Devices by name: a batch is split over `data`, everything else is on each of them."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seg_jax import errors


def make_mesh(batch_sizes: dict[str, int] | None = None) -> Mesh:
  """All devices, along `data`; `batch_sizes`, by config key, have to be multiples of their number.

  Raises:
    UserError: a batch that cannot be shared out evenly.
  """
  devices = jax.device_count()
  for key, size in (batch_sizes or {}).items():
    if size % devices:
      raise errors.UserError(f'{key} is {size}; expected a multiple of the {devices} devices')
  return jax.make_mesh((devices, 1), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def sharded(mesh: Mesh) -> NamedSharding:
  """A batch's arrays split along their first axis."""
  return NamedSharding(mesh, P('data'))


def shard_batch(batch: dict, mesh: Mesh) -> dict:
  """The batch's arrays, on the devices."""
  return jax.device_put(batch, sharded(mesh))


def placed(shapes, sharding: NamedSharding):
  """Shapes of arrays that lie on the devices as `sharding` says, for compilation and restoring."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
