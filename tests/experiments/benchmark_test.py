import contextlib
import io
import json
import math
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from experiments import benchmark, benchmark_jax
from experiments.benchmark_sides import Worker, WorkerError
from seg_jax.errors import UserError
from seg_jax.models import build_model
from seg_jax.weights import load

try:
  import torch

  from experiments import benchmark_torch, torch_models
except ImportError:
  torch = None

needs_torch = unittest.skipIf(torch is None, 'PyTorch is not installed')
SYSTEMS = ('unet', 'segnet', 'segnet_basic', 'fcn8s', 'fcn_resnet', 'deeplab_v3')
MACHINE = {'name': 'a machine', 'platform': 'cpu', 'cores': 1, 'versions': {'jax': '1'}}
SMALL = {
  'unet': {'width': 4},
  'segnet': {'width': 4},
  'segnet_basic': {'width': 4},
  'fcn8s': {'width': 4, 'fc_features': 8},
}


def spec(system: str, shape=(2, 33, 47), **fields) -> dict:
  """What a worker would be told, for a net with other `fields`."""
  told = benchmark.specification(system, shape, MACHINE, quick=False)
  told['fields'] |= fields
  told['model'] |= fields
  return told


def same_weights(model, variables) -> None:
  """Gives the PyTorch `model` what ours has, by our names."""
  leaves = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
  state = {}
  for path, array in load.flat(variables).items():
    _, layer, leaf = path.split('/')
    array = np.array(array)
    state[f'{layer}.{leaves.get(leaf, leaf)}'] = torch.from_numpy(
      array.transpose(_order(model, layer)).copy() if leaf == 'kernel' else array
    )
  known = model.state_dict()
  counters = {name for name in known if name.endswith('num_batches_tracked')}
  assert state.keys() == known.keys() - counters
  model.load_state_dict(state, strict=False)


def _order(model, layer):
  transposed = isinstance(model.get_submodule(layer), torch.nn.ConvTranspose2d)
  return (2, 3, 0, 1) if transposed else (3, 2, 0, 1)


def drawn(variables, seed=0):
  """The same tree with values that differ everywhere; variances above 0."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    fan_in = math.prod(leaf.shape[:-1])
    if path[-1].key == 'kernel':
      return rng.standard_normal(leaf.shape, np.float32) * np.float32(math.sqrt(2 / fan_in))
    return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, variables)


@needs_torch
class CounterpartTest(parameterized.TestCase):
  def test_covers_what_it_says(self):
    self.assertEqual(tuple(torch_models.NETS), SYSTEMS)

  @parameterized.parameters(*SYSTEMS)
  def test_has_as_many_parameters_as_ours_at_full_size(self, system):
    told = spec(system)
    config = benchmark_jax.configuration(system, {}, 'float32')
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    ours = jax.eval_shape(build_model(config, 21).init, jax.random.key(0), image)['params']
    with torch.device('meta'):
      theirs = torch_models.NETS[system](told['model'], 21)
    self.assertEqual(
      sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(ours)),
      sum(p.numel() for p in theirs.parameters()),
    )

  @parameterized.parameters(*SMALL.items())
  def test_gives_the_logits_of_ours(self, system, fields):
    """torchvision's are compared in tests/weights/parity_test.py."""
    config = benchmark_jax.configuration(system, fields, 'float32')
    ours = build_model(config, 21)
    images = np.random.default_rng(1).standard_normal((2, 70, 45, 3), np.float32)
    variables = drawn(jax.eval_shape(ours.init, jax.random.key(0), images))
    theirs = torch_models.NETS[system](spec(system, **fields)['model'], 21).eval()
    same_weights(theirs, variables)
    with torch.no_grad():
      (logits,) = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    expected = np.asarray(jax.jit(ours.apply)(variables, images)['logits'])
    self.assertGreater(expected.std(), 0.1)
    np.testing.assert_allclose(logits.permute(0, 2, 3, 1), expected, rtol=1e-3, atol=1e-3)

  @pytest.mark.slow
  def test_trains_as_ours_does(self):
    """Losses of three steps from the same weights: loss, gradients, decay, AdamW."""
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    self.enterContext(contextlib.redirect_stdout(io.StringIO()))
    told = spec('unet', width=4)
    ours, theirs = benchmark_jax.Side(), benchmark_torch.Side()
    self.assertEqual(ours.build(told), theirs.build(told, compiled=False))
    variables = drawn(ours.state.variables)
    same_weights(theirs.model.train(), variables)
    params = variables.pop('params')
    state = ours.state.replace(params=params, model_state=variables)
    state = jax.tree.map(np.array, state)
    ours.first('train')  # a step, which is undone
    ours.state = jax.device_put(state)
    losses = [[side.call('train') for side in (ours, theirs)] for _ in range(3)]
    self.assertLess(losses[2][0], losses[0][0] - 0.01)
    np.testing.assert_allclose(*losses[0], rtol=1e-5)
    np.testing.assert_allclose(*losses[1], rtol=1e-3)
    np.testing.assert_allclose(*losses[2], rtol=1e-3)


class WorkerTest(absltest.TestCase):
  SIDE = """
import os
import time
from experiments.benchmark_sides import serve

class Side:
  def add(self, a, b):
    print('noise')
    return [a + b]

  def fail(self):
    raise ValueError('no\\nway')

  def die(self):
    os._exit(3)

  def stop(self):
    os.abort()

  def linger(self):
    time.sleep(600)

serve(Side)
"""

  def test_answers_and_tells_what_goes_wrong(self):
    with Worker('-c', self.SIDE) as worker:
      self.assertEqual(worker('add', a=1, b=2), [3])
      with self.assertRaisesRegex(WorkerError, '^ValueError: no way$'):
        worker('fail')
      self.assertEqual(worker('add', a='x', b='y'), ['xy'])  # and goes on
      with self.assertRaisesRegex(WorkerError, 'ended with exit code 3'):
        worker('die')
      with self.assertRaisesRegex(WorkerError, 'ended with exit code 3'):
        worker('add', a=1, b=2)
    with (
      Worker('-c', self.SIDE) as worker,
      self.assertRaisesRegex(WorkerError, 'was ended by signal 6'),
    ):
      worker('stop')
    with (
      mock.patch('experiments.benchmark_sides.PATIENCE', 1),
      Worker('-c', self.SIDE) as worker,
      self.assertRaisesRegex(WorkerError, 'not done in 1 s'),
    ):
      worker('linger')


class Fake:
  """In place of a worker: knows all answers, but fails at what `fails` names."""

  def __init__(self, *fails: tuple):
    self.fails = fails

  def __call__(self, method, what=None, **arguments):
    if (method, what) in self.fails:
      raise WorkerError('out of memory')
    return {
      'machine': MACHINE,
      'build': {'parameters': 12_345_678},
      'first': {'seconds': 1.5, 'memory': 2**21, 'flops': 1e6},
      'multiply': 10**6,
      'call': 0.5,
    }[method]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass


class BenchmarkTest(parameterized.TestCase):
  def row(self, *fails: tuple[str, tuple]) -> dict:
    """A row whose sides fail as told: (side, (method, pass))."""
    fakes = {
      name: Fake(*(where for side, where in fails if side == name)) for name in benchmark.SIDES
    }
    with mock.patch.object(benchmark, 'start', fakes.get):
      return benchmark.measure(spec('unet'), benchmark.SIDES, rounds=2)

  def page(self, *rows: dict) -> str:
    benchmark.chart(list(rows)).savefig(io.BytesIO())
    result = {'machine': MACHINE, 'rounds': 2, 'dtype': 'float32', 'rows': list(rows)}
    self.assertEqual(json.loads(json.dumps(result))['machine'], MACHINE)
    return benchmark.page(result)

  def test_measures_all_sides(self):
    row = self.row()
    for what in ('forward', 'train'):
      ours, *theirs = (row['sides'][name][what] for name in row['sides'])
      self.assertAlmostEqual(ours['images_per_s'] * ours['ms'], 2000)
      ratio = ours['ms'] / min(their['ms'] for their in theirs)
      self.assertAlmostEqual(row['ratio'][what], ratio)
      # As many operations as the product has, so the share is the ratio of the times.
      self.assertAlmostEqual(ours['share_of_peak'] * ours['ms'] * ours['peak_gflops'], 1)
    self.assertNotIn('failed', self.page(row))

  @parameterized.parameters('build', 'first', 'call')
  def test_a_side_that_fails_leaves_a_line_and_the_others_their_times(self, method):
    what = None if method == 'build' else 'train'
    row = self.row((benchmark.COMPILED, (method, what)))
    where = 'training step' if what else 'build'
    page = self.page(row)
    self.assertIn(f'- unet, 2 x 33 x 47, PyTorch compiled: {where}: out of memory', page)
    self.assertEqual('forward' in row['sides'][benchmark.COMPILED], method != 'build')
    self.assertNotIn('train', row['sides'][benchmark.COMPILED])
    ours, eager = (row['sides'][name]['train']['ms'] for name in (benchmark.OURS, benchmark.EAGER))
    self.assertAlmostEqual(row['ratio']['train'], ours / eager)

  @parameterized.parameters(('build', None), ('first', 'forward'), ('call', 'train'))
  def test_ours_may_fail_too(self, method, what):
    row = self.row((benchmark.OURS, (method, what)))
    page = self.page(row, self.row())
    self.assertIn('- unet, 2 x 33 x 47, seg_jax: ', page)
    self.assertGreater(row['sides'][benchmark.EAGER]['train']['ms'], 0)
    self.assertNotIn('train', row['ratio'])

  def test_reads_shapes(self):
    self.assertEqual(benchmark.shapes(['4x128x96', '1x2x3']), [(4, 128, 96), (1, 2, 3)])
    for wrong in ('4x128', '4x128x0', 'axbxc', '4x-1x2', ''):
      with self.assertRaisesRegex(UserError, '--shapes'):
        benchmark.shapes([wrong])

  def test_names_the_nearest_system(self):
    with self.assertRaisesRegex(UserError, "--systems: 'segnets'; did you mean 'segnet'"):
      spec('segnets')

  @parameterized.parameters(*benchmark.SYSTEMS)
  def test_systems_train_by_the_same_rule_and_their_specifications_go_through_a_pipe(self, system):
    told = benchmark.specification(system, (1, 8, 8), MACHINE | {'platform': 'gpu'}, quick=True)
    self.assertEqual(json.loads(json.dumps(told))['system'], system)
    config = benchmark_jax.configuration(system, told['fields'], told['dtype'])
    self.assertEqual((config.dtype, told['device']), ('bfloat16', 'cuda'))
    self.assertEqual(config.optimizer.name, 'adamw')
    self.assertEqual(config.data.image_scale, 1.0)
    weights = {name: config.loss[name] for name in ('cross_entropy', 'dice', 'focal', 'lovasz')}
    self.assertEqual(weights, {'cross_entropy': 1, 'dice': 0, 'focal': 0, 'lovasz': 0})

  def test_counts_a_step_as_three_forward_passes_without_the_auxiliary_head(self):
    self.enterContext(jax.numpy_dtype_promotion('standard'))
    side = benchmark_jax.Side()
    side.build(spec('fcn_resnet', (2, 32, 32), backbone='resnet18', backbone_width=0.25))
    forward, train = (side._multiply_adds(what) for what in ('forward', 'train'))
    # On 4 x 4 pixels a 3x3 convolution from 64 channels, as ResNet-18's stage 3 has at a quarter of
    # its width, to 16, and 1x1 to the classes, for two pictures.
    auxiliary = 2 * 16 * (9 * 64 * 16 + 16 * benchmark.CLASSES)
    self.assertEqual(train, 3 * (forward + auxiliary))

  @pytest.mark.slow
  def test_quick_runs_without_pytorch(self):
    out = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(mock.patch.object(benchmark, 'torch_models', None))
    self.enterContext(contextlib.redirect_stdout(io.StringIO()))
    if not flags.FLAGS.is_parsed():
      flags.FLAGS(['test'])
    with flagsaver.as_parsed(quick='true', out=out):
      benchmark.main('benchmark')
    (row,) = json.loads((Path(out) / 'benchmark.json').read_text())['rows']
    self.assertEqual(list(row['sides']), [benchmark.OURS])
    self.assertNotIn('error', row['sides'][benchmark.OURS])
    for what in ('forward', 'train'):
      figures = row['sides'][benchmark.OURS][what]
      for name in ('seconds', 'ms', 'flops', 'xla_flops', 'xla_bytes', 'memory', 'share_of_peak'):
        self.assertGreater(figures[name], 0)
    self.assertIn('| unet, 2 x 32 x 32 | training step |', (Path(out) / 'README.md').read_text())


if __name__ == '__main__':
  absltest.main()
