"""What a person wants to know before step 0: the parameters, and the memory that a step needs."""

import collections
import contextlib
import math
from collections.abc import Callable

import jax

from seg_jax import errors

STEP_REMEDY = 'lower data.batch_size or data.crop_size, or raise train.accumulation'


def parameters(params) -> str:
  """A table of the model's top-level layers, their shapes and number of parameters."""
  counts, shapes = collections.Counter(), {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    layer = path[0].key
    counts[layer] += math.prod(leaf.shape)
    if path[-1].key == 'kernel':
      shapes[layer] = ' x '.join(map(str, leaf.shape))
  rows = [(layer, shapes.get(layer, ''), f'{count:,}') for layer, count in counts.items()]
  rows.append(('total', '', f'{sum(counts.values()):,}'))
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  return '\n'.join(f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}' for a, b, c in rows)


@contextlib.contextmanager
def enough_memory(what: str, remedy: str):
  """Tells a lack of device memory as a `UserError` that says what to do about it."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise errors.UserError(f'{what} does not fit into memory; {remedy}') from error


def compile_step(jitted: Callable, *arguments) -> Callable:
  """The step, compiled now; prints the memory that it needs on one device.

  Raises:
    UserError: the memory does not suffice; the message says which settings to lower.
  """
  with enough_memory('a training step', STEP_REMEDY):
    compiled = jitted.lower(*arguments).compile()
  memory = compiled.memory_analysis()
  if memory is not None:
    held, needed = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    print(
      f'memory: {held / 2**20:,.0f} MiB of state and batch, {needed / 2**20:,.0f} MiB for a step'
    )
    available = _available_bytes()
    if available is not None and needed > available:
      raise errors.UserError(
        f'a training step needs {needed / 2**30:.1f} GiB, but {available / 2**30:.1f} GiB '
        f'are free; {STEP_REMEDY}'
      )
  return compiled


def _available_bytes() -> int | None:
  """Free memory of the first device, or of the machine where the device is the machine."""
  device = jax.local_devices()[0]
  if stats := device.memory_stats():
    return stats['bytes_limit'] - stats['bytes_in_use']
  if device.platform != 'cpu':
    return None
  try:
    with open('/proc/meminfo') as lines:
      return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable'))
  except OSError:
    return None
