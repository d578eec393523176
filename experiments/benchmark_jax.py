"""Our side of `experiments.benchmark`, in a process of its own."""

import dataclasses
import functools
import importlib
import math
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import benchmark_sides as sides
from experiments import study
from seg_jax import runtime
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.tasks import build_task
from seg_jax.training import summary
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.step import init_state, make_step

MATRIX = {'cpu': 2048}  # rows of the product that tells the machine's peak
LARGE_MATRIX = 8192  # on accelerators


def configuration(system: str, fields: dict, dtype: str) -> ml_collections.ConfigDict:
  """`configs/SYSTEM.py` at full size, for AdamW and cross entropy at a constant rate.

  Raises:
    ModuleNotFoundError: there is no such system.
  """
  config = importlib.import_module(f'configs.{system}').get_config('camvid')
  config.dtype = dtype
  config.model.update(fields)
  config.data.update({'image_scale': 1.0, 'photometric': 0.0})
  config.loss.update({'cross_entropy': 1.0, 'dice': 0.0, 'focal': 0.0, 'lovasz': 0.0})
  config.optimizer.update({'name': 'adamw', 'schedule': 'constant', 'warmup_steps': 0})
  return config


class Side:
  """A system with its batch, and what is timed of it: the step of training, and the logits."""

  def machine(self) -> dict:
    """Its name and versions, and the kind of its first device: 'cpu', 'gpu' or 'tpu'."""
    return study.machine() | {'platform': jax.default_backend()}

  def build(self, spec: dict) -> dict:
    """The system of `spec`, of which `experiments.benchmark.specification` tells."""
    config = configuration(spec['system'], spec['fields'], spec['dtype'])
    self._dtype = spec['dtype']
    classes = tuple(map(str, range(spec['classes'])))
    info = DatasetInfo('noise', classes, np.zeros((len(classes), 3), np.uint8))
    self._task = task = build_task(config, info)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    batch_size, *size = spec['shape']
    shapes = task.example(batch_size, tuple(size))
    init = functools.partial(init_state, task, optimizer, 0.0, shapes=shapes)
    self._key = jax.random.key(0)
    self.state = jax.jit(init)(self._key)
    self._step = make_step(task, optimizer, schedule)
    images, labels = sides.batch(spec['shape'], spec['classes'])
    batch = {'image': images, 'label': labels, 'valid': np.ones(batch_size, bool)}
    self._batch = jax.device_put(batch)
    self._compiled = {}
    return {'parameters': sum(leaf.size for leaf in jax.tree.leaves(self.state.params))}

  def first(self, what: str) -> dict:
    """Makes 'forward' or 'train' ready: `seconds` of compilation, and what the program costs.

    `flops` are the model's, two for each multiply-add of its convolutions and matrix products; a
    training step has three times those of its forward pass. `xla_flops` and `xla_bytes` are what
    XLA counts in its program, a loop's body once. `memory`, in bytes, is what XLA plans that to
    hold: arguments, results, and between them what is `temporary`.
    """
    start = time.perf_counter()
    if what == 'train':
      step = jax.jit(self._step, donate_argnums=0)
      compiled = summary.compile_step(step, self.state, self._batch, self._key)
    else:
      arguments = self.state.variables, self._batch['image']
      compiled = jax.jit(self._logits).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    self._compiled[what] = compiled
    self.call(what)
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    report = {
      'seconds': seconds,
      'flops': 2 * self._multiply_adds(what),
      'xla_flops': cost.get('flops'),
      'xla_bytes': cost.get('bytes accessed'),
    }
    if memory is not None:
      held = memory.argument_size_in_bytes + memory.output_size_in_bytes
      report['temporary'] = memory.temp_size_in_bytes
      report['memory'] = held - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return report

  def call(self, what: str) -> float | None:
    """Does it once, to the end, and returns the loss, where there is one."""
    if what == 'forward':
      self._compiled[what](self.state.variables, self._batch['image']).block_until_ready()
      return None
    self.state, logs = self._compiled[what](self.state, self._batch, self._key)
    return float(jax.block_until_ready(logs)['loss'])

  def multiply(self) -> int:
    """Multiplies two large matrices, as fast as this machine can; returns the operations."""
    if not hasattr(self, '_matrix'):
      size = MATRIX.get(jax.default_backend(), LARGE_MATRIX)
      self._matrix = jnp.ones((size, size), self._dtype)
      self._product = jax.jit(jnp.matmul)
    self._product(self._matrix, self._matrix).block_until_ready()
    return 2 * math.prod(self._matrix.shape) * len(self._matrix)

  def _logits(self, variables, image):
    return self._task.predict(variables, {'image': image})['logits']

  def _multiply_adds(self, what: str) -> int:
    if what == 'train':
      loss = functools.partial(self._task.loss, train=True)
      traced = jax.make_jaxpr(loss)(self.state.variables, self._batch, self._key)
      return 3 * study.multiply_adds(traced.jaxpr)
    model = self._task.model
    if getattr(model, 'auxiliary', False):  # XLA leaves out what nobody asks for; a trace does not
      model = model.clone(auxiliary=False)
    bare = dataclasses.replace(self._task, model=model)
    traced = jax.make_jaxpr(bare.predict)(self.state.variables, self._batch)
    return study.multiply_adds(traced.jaxpr)


def begin() -> Side:
  """As every run begins, but that all is compiled anew."""
  runtime.start()
  jax.config.update('jax_enable_compilation_cache', False)
  return Side()


if __name__ == '__main__':
  sides.serve(begin)
