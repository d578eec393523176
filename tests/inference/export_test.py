import contextlib
import io
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl.testing import absltest

import main
from seg_jax import settings
from seg_jax.data.datasets import open_dataset
from seg_jax.errors import UserError
from seg_jax.tasks import build_task
from seg_jax.training import checkpoints
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.step import init_state
from seg_jax.weights import files, load, names
from tests.models.backbones.variables import random_like
from tests.training import tiny


def config(**fields):
  """FCN on a narrow ResNet-18."""
  config = tiny.config()
  model = {'name': 'fcn_resnet', 'backbone': 'resnet18', 'backbone_width': 1 / 16}
  config.model = ml_collections.ConfigDict(model | {'norm': 'batch', 'pretrained': ''} | fields)
  config.name = config.model.name
  return config


class ExportTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def save(self, config):
    """A checkpoint of `config` after step 3; returns its variables."""
    settings.for_training(config, self.folder)
    source = open_dataset(config.data, 'train', config.seed)
    task = build_task(config, source.info)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    example = task.example(1, config.data.crop_size)
    shapes = jax.eval_shape(
      lambda key: init_state(task, optimizer, 0.0, key, example), jax.random.key(0)
    )
    variables = random_like({'params': shapes.params} | shapes.model_state)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    state = state.replace(
      params=variables['params'], model_state={'batch_stats': variables['batch_stats']}
    )
    with checkpoints.Checkpoints(self.folder) as saved:
      saved.save(3, state, checkpoints.origin(config, source), 0.5)
    return variables

  def export(self, config, output=None):
    with contextlib.redirect_stdout(io.StringIO()) as told:
      main.run(config, self.folder, 'export', {}, [], output)
    return told.getvalue()

  def test_what_is_exported_comes_back_as_it_was(self):
    expected = load.flat(self.save(config()))
    outputs = {None: self.folder / 'export' / 'fcn_resnet.safetensors'}
    outputs[self.folder / 'ours.safetensors'] = self.folder / 'ours.safetensors'
    for output, path in outputs.items():
      told = self.export(config(), output)
      self.assertRegex(told, f'weights of step 3, .* names of torchvision, 7 classes: {path}\n')
      self.assertIn('backbone.layer4.1.bn2.running_var', files.read(path))
      found = load.of_file(path, names.tables(config().model.to_dict()), expected)
      self.assertEqual(found.arrays.keys(), expected.keys())
      for name, array in expected.items():
        np.testing.assert_array_equal(found.arrays[name], array, name)

  def test_what_torchvision_has_not_is_refused(self):
    settings.for_training(tiny.config(), self.folder)
    message = "model.name is 'unet', which torchvision has not; expected one of fcn_resnet, deeplab"
    with self.assertRaisesRegex(UserError, message):
      self.export(tiny.config())

  def test_layers_that_torchvision_has_not_are_named(self):
    cascade = config(name='deeplab_v3', head='cascade')
    self.save(cascade)
    with self.assertRaisesRegex(UserError, 'no model with .*backbone/layer5_0.* and [0-9]+ more'):
      self.export(cascade)
    self.assertFalse((self.folder / 'export').exists())

  def test_another_kind_of_file_is_refused(self):
    settings.for_training(config(), self.folder)
    with self.assertRaisesRegex(UserError, '--output=a.pth is expected to end in .safetensors'):
      self.export(config(), Path('a.pth'))


if __name__ == '__main__':
  absltest.main()
