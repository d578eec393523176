import contextlib
import functools
import io
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import SingleDeviceSharding

from seg_jax.errors import UserError
from seg_jax.models import build_model
from seg_jax.training import checkpoints
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.step import TrainState
from seg_jax.weights import convert, files, load, names
from tests.models.backbones.variables import random_like
from tests.training import loop_test, tiny

FACTS = {'model': 'fcn', 'classes': ['a', 'b']}
CLASSES = ('a', 'b', 'c')


def one_device():
  return SingleDeviceSharding(jax.devices()[0])


def state(value, *, ema=None, **shapes):
  """Arrays of `value` under params/NAME/kernel and its batch statistics; a step has been done."""
  params, stats = (
    {name: {leaf: jnp.full(shape, value)} for name, shape in shapes.items()}
    for leaf in ('kernel', 'mean')
  )
  averaged = {} if ema is None else jax.tree.map(lambda x: jnp.full_like(x, ema), params)
  optimizer = jax.tree.map(lambda x: jnp.full_like(x, value), optax.adam(0.1).init(params))
  tree = TrainState(jnp.int32(1), params, {'batch_stats': stats}, optimizer, averaged)
  return jax.device_put(tree, one_device())


def told_by(function, *arguments):
  with contextlib.redirect_stdout(io.StringIO()) as told:
    result = function(*arguments)
  return result, told.getvalue()


class RunTest(parameterized.TestCase):
  """From the workdir of a run."""

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def save(self, scores, **fields):
    """Checkpoints of the steps in `scores`, filled with the step's number."""
    with Checkpoints(self.folder, keep_last=2) as saved:
      for step, score in scores.items():
        saved.save(step, state(float(step), **fields), FACTS, score)

  def start(self, fresh, classes=('a', 'b'), of_classes=()):
    found = load.of_run(self.folder, classes, *checkpoints.best_of(self.folder, one_device()))
    return told_by(load.take, fresh, found, of_classes, 3)

  def test_takes_what_fits_and_tells_the_rest(self):
    self.save({5: 0.5}, trunk=(3, 4), head=(4, 2), old=(1,))
    fresh = state(0.0, trunk=(3, 4), head=(4, 3), new=(7,))
    heads = ('params/head/kernel', 'batch_stats/head/mean')
    started, told = self.start(fresh, of_classes=heads)
    for tree, leaf in ((started.params, 'kernel'), (started.model_state['batch_stats'], 'mean')):
      for name, value in {'trunk': 5, 'head': 0, 'new': 0}.items():
        expected = jax.tree.leaves(fresh.params[name])[0].shape
        np.testing.assert_array_equal(tree[name][leaf], np.full(expected, value), name)
    self.assertEqual(jax.tree.structure(started), jax.tree.structure(fresh))
    self.assertRegex(told, 'step 5 of .*: 2 of 6 arrays taken')
    self.assertIn('new here: batch_stats/new/mean, params/new/kernel\n', told)
    self.assertIn('params/head/kernel (4, 2) there, (4, 3) here\n', told)
    self.assertIn('not needed: batch_stats/old/mean, params/old/kernel\n', told)

  def test_another_shape_that_is_no_heads_is_refused(self):
    self.save({5: 0.5}, trunk=(3, 4), head=(4, 2))
    message = r'step 5 of .*: batch_stats/trunk/mean is \(3, 4\) there, \(3, 5\) here$'
    with self.assertRaisesRegex(UserError, message):
      self.start(state(0.0, trunk=(3, 5), head=(4, 2)), of_classes=('params/head/kernel',))

  def test_other_channels_of_a_picture_are_named(self):
    self.save({5: 0.5}, conv1=(7, 7, 5, 4), head=(4, 2))
    message = r'conv1/.* is .* there, .* here; expected data.channels=5'
    with self.assertRaisesRegex(UserError, message):
      self.start(state(0.0, conv1=(7, 7, 3, 4), head=(4, 2)))

  def test_a_long_list_is_cut_short(self):
    self.save({5: 0.5}, trunk=(1,))
    _, told = self.start(state(0.0, trunk=(1,), **{f'new{i}': (1,) for i in range(9)}))
    self.assertRegex(told, 'new here: batch_stats/new0/mean, .*/new5/mean and 12 more\n')

  def test_takes_the_best_step_and_neither_its_number_nor_its_optimizer(self):
    self.save({5: 0.9, 6: 0.1, 7: None}, trunk=(2,))
    fresh = state(0.0, trunk=(2,)).replace(step=jnp.int32(0))
    started, _ = self.start(fresh)
    np.testing.assert_array_equal(started.params['trunk']['kernel'], [5, 5])
    self.assertEqual(started.step, 0)
    np.testing.assert_array_equal(started.opt_state[0].mu['trunk']['kernel'], [0, 0])
    self.assertEqual(started.ema_params, {})

  def test_tells_that_the_classes_were_others(self):
    self.save({5: 0.5}, head=(4, 2))
    fresh = state(0.0, head=(4, 2))
    self.assertNotIn('classes', self.start(fresh)[1])
    self.assertIn('classes are others: a, b\n', self.start(fresh, ('b', 'a'))[1])

  def test_takes_averaged_weights_where_there_are_any_and_averages_from_what_it_took(self):
    self.save({5: 0.9}, ema=8.0, trunk=(2,))
    started, _ = self.start(state(0.0, ema=0.0, trunk=(2,), new=(1,)))
    for params in (started.params, started.ema_params):
      np.testing.assert_array_equal(params['trunk']['kernel'], [8, 8])
      np.testing.assert_array_equal(params['new']['kernel'], [0])
    # A step gives the memory of its state away, so no array may be in it twice.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(started)]
    self.assertLen(set(pointers), len(pointers))

  def test_no_checkpoint_and_nothing_that_fits_are_the_users_errors(self):
    with self.assertRaisesRegex(UserError, 'model.pretrained is .*, which holds no checkpoint'):
      self.start(state(0.0, trunk=(2,)))
    self.save({5: 0.9}, trunk=(2,), other=(1,))
    with self.assertRaisesRegex(UserError, 'step 5 of .*: no array fits this model'):
      self.start(state(0.0, new=(1,)))

  def test_a_save_that_was_cut_short_is_no_checkpoint(self):
    (self.folder / 'checkpoints' / '5.orbax-checkpoint-tmp').mkdir(parents=True)
    with self.assertRaisesRegex(UserError, 'holds no whole checkpoint'):
      self.start(state(0.0, trunk=(2,)))

  @pytest.mark.slow
  def test_a_run_starts_there_once_and_resumes_bit_for_bit_without_it(self):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    source = self.folder / 'source'
    loop_test.train(source, tiny.config(optimizer__ema_decay=0.9, model__norm='none'))
    fields = {'train__num_steps': 3}
    config = tiny.config(model__pretrained=str(source), **fields)
    with contextlib.redirect_stdout(io.StringIO()) as told:
      loop_test.train(self.folder / 'whole', config)
      loop_test.train_and_stop(self.folder / 'parts', config, at=1)
    self.assertEqual(told.getvalue().count('arrays taken'), 2)
    self.assertIn('new here: batch_stats/bottom_norm1/mean', told.getvalue())
    shutil.rmtree(source)
    loop_test.train(self.folder / 'parts', config)
    loop_test.compare(
      self, loop_test.outcome(self.folder / 'whole'), loop_test.outcome(self.folder / 'parts')
    )
    loop_test.train(self.folder / 'scratch', tiny.config(**fields))
    scratch, whole = (loop_test.outcome(self.folder / name)[2][0] for name in ('scratch', 'whole'))
    self.assertNotEqual(scratch['loss'], whole['loss'])


# FCN on a narrow ResNet-18, which torchvision's names fit.
NARROW = {'name': 'fcn_resnet', 'backbone': 'resnet18', 'backbone_width': 1 / 16, 'norm': 'batch'}


def config(model, pretrained=''):
  config = tiny.config()
  config.model = ml_collections.ConfigDict(model | {'pretrained': str(pretrained)})
  return config


@functools.cache
def shapes(num_classes=3, **fields):
  model = build_model(config(NARROW | fields), num_classes)
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def fresh_state(shapes):
  """Zeros, and norms that do nothing."""

  def leaf(path, x):
    return jnp.full(x.shape, float(path[-1].key in ('scale', 'var')), x.dtype)

  variables = dict(jax.tree_util.tree_map_with_path(leaf, shapes))
  tree = TrainState(jnp.int32(0), variables.pop('params'), variables, {}, {})
  return jax.device_put(tree, one_device())


class FileTest(parameterized.TestCase):
  """From a file with torchvision's names."""

  def setUp(self):
    super().setUp()
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = folder / 'weights.safetensors'
    self.ours = load.flat(random_like(shapes()))
    tables = names.tables(NARROW)
    self.arrays, _ = convert.to_torch(jax.device_get(self.ours), tables[0])

  def start(self, classes=CLASSES):
    files.write(self.path, self.arrays)
    fresh = fresh_state(shapes(len(classes)))
    started, told = told_by(load.pretrained, fresh, config(NARROW, self.path), classes, 0, None)
    return load.flat({'params': started.params} | started.model_state), told

  def refused(self, message, **fields):
    """By `of_file`, which needs no values."""
    files.write(self.path, self.arrays)
    with self.assertRaisesRegex(UserError, message) as caught:
      load.of_file(self.path, names.tables(NARROW | fields), load.flat(shapes(**fields)))
    self.assertNotIn('\n', str(caught.exception))
    self.assertIn(str(self.path), str(caught.exception))

  def test_a_whole_model_without_a_word_of_mismatch(self):
    started, told = self.start()
    count = len(self.ours)
    self.assertEqual(
      told,
      f"starting from {self.path}, torchvision's names: {count} of {count} arrays taken\n",
    )
    for path, array in self.ours.items():
      np.testing.assert_array_equal(started[path], array, path)

  def test_with_another_number_of_classes(self):
    started, told = self.start('abcde')
    heads = {
      f'params/{head}/score/{leaf}' for head in ('head', 'aux') for leaf in ('kernel', 'bias')
    }
    for path, array in self.ours.items():
      if path in heads:
        self.assertIn(f'{path} {array.shape} there, {started[path].shape} here', told)
        self.assertFalse(np.any(started[path]))
      else:
        np.testing.assert_array_equal(started[path], array, path)

  def test_a_backbone_of_a_classifier(self):
    """Its own head is not needed, ours is new; a module's name may stand before its layers."""
    backbone = {
      name.removeprefix('backbone.'): array
      for name, array in self.arrays.items()
      if name.startswith('backbone.')
    }
    for before in ('', 'encoder.'):
      self.arrays = {f'{before}{name}': array for name, array in backbone.items()}
      self.arrays |= {'fc.weight': np.ones((9, 32), np.float32), 'fc.bias': np.ones(9, np.float32)}
      started, told = self.start()
      self.assertIn('not needed: fc.bias, fc.weight\n', told)
      self.assertIn('new here: batch_stats/aux/norm/mean,', told)
      for path, array in self.ours.items():
        fresh = float(path.endswith(('/scale', '/var')))
        expected = array if '/backbone/' in path else np.full(array.shape, fresh)
        np.testing.assert_array_equal(started[path], expected, path)

  def test_a_part_of_the_backbone_that_is_missing(self):
    del self.arrays['backbone.layer3.0.conv1.weight']
    self.refused('lacks backbone.layer3.0.conv1.weight, which the backbone needs')

  def test_a_part_of_the_head_may_be_missing(self):
    self.arrays = {
      name: array for name, array in self.arrays.items() if not name.startswith('aux_classifier')
    }
    _, told = self.start()
    self.assertIn('new here: batch_stats/aux/norm/mean, batch_stats/aux/norm/var, ', told)

  def test_a_deeper_net(self):
    self.arrays['backbone.layer3.22.conv1.weight'] = np.ones((2, 2, 3, 3), np.float32)
    self.refused('of another model: the backbone here has no place for backbone.layer3.22.conv1')

  def test_another_norm(self):
    self.refused(
      r"no place for backbone.*running_mean.* and \d+ more; expected model.norm 'batch'",
      norm='group',
    )

  def test_another_net(self):
    self.arrays = {
      'features.0.weight': np.ones(3, np.float32),
      'head.weight': np.ones(3, np.float32),
    }
    self.refused('of another model: nothing here is called features.0.weight, head.weight there')

  def test_a_system_that_nobody_else_has(self):
    files.write(self.path, self.arrays)
    with self.assertRaisesRegex(UserError, "nobody else has this system's layers; .* of a run"):
      load.of_file(self.path, names.tables({'name': 'unet'}), {})

  @parameterized.parameters(
    ('backbone.conv1.weight', (4, 5, 7, 7), 'data.channels=5'),
    ('backbone.conv1.weight', (4, 3, 3, 3), r'\(3, 3, 3, 4\) there, \(7, 7, 3, 4\) here$'),
    ('backbone.layer1.0.bn1.weight', (9,), r'layer1_0/norm1/scale is \(9,\) there, \(4,\) here$'),
    ('classifier.1.weight', (9,), r'params/head/norm/scale is \(9,\) there, \(8,\) here$'),
  )
  def test_a_shape_that_does_not_fit(self, name, shape, message):
    self.arrays[name] = np.ones(shape, np.float32)
    files.write(self.path, self.arrays)
    found = load.of_file(self.path, names.tables(NARROW), load.flat(shapes()))
    with self.assertRaisesRegex(UserError, message):
      load.take(fresh_state(shapes()), found, (), 3)

  def test_no_file(self):
    with self.assertRaisesRegex(
      UserError, "model.pretrained is 'nowhere.pth', which does not exist"
    ):
      load.pretrained(fresh_state(shapes()), config(NARROW, 'nowhere.pth'), CLASSES, 0, None)


class PlainVGGTest(absltest.TestCase):
  def test_its_biases_go_into_the_norms_of_an_fcn_that_has_them(self):
    """Evaluated, such a norm adds what the bias did, but for an epsilon of 1e-5."""
    fcn = {'name': 'fcn', 'backbone': 'vgg16', 'head': '32s', 'width': 4, 'fc_features': 8}
    fcn |= {'dropout': 0.0}
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    plain, normed = (build_model(config(fcn | {'norm': norm}), 3) for norm in ('none', 'batch'))
    theirs = random_like(jax.eval_shape(plain.init, jax.random.key(0), images))
    table = names.Table('torchvision', names.VGG16, names.VGG16_HEAD)
    arrays, nameless = convert.to_torch(load.flat(jax.device_get(theirs)), table)
    self.assertCountEqual(nameless, ['params/score_fr/kernel', 'params/score_fr/bias'])
    path = Path(self.enterContext(tempfile.TemporaryDirectory())) / 'vgg16.safetensors'
    files.write(path, arrays)
    here = jax.eval_shape(normed.init, jax.random.key(0), images)
    found = load.of_file(path, names.tables(fcn), load.flat(here))
    started, told = told_by(load.take, fresh_state(here), found, (), 3)
    self.assertIn('new here: batch_stats/fc6_norm/var,', told)
    params = started.params | {'score_fr': theirs['params']['score_fr']}
    ours = jax.jit(normed.apply)({'params': params} | started.model_state, images)['logits']
    expected = jax.jit(plain.apply)(theirs, images)['logits']
    np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())


class ClassLayersTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      {'name': 'fcn', 'backbone': 'vgg16', 'head': '16s', 'width': 4, 'fc_features': 8},
      (
        'score_fr/kernel',
        'score_fr/bias',
        'score_pool4/kernel',
        'score_pool4/bias',
        'upscore2/kernel',
      ),
    ),
    (NARROW, ('head/score/kernel', 'head/score/bias', 'aux/score/kernel', 'aux/score/bias')),
  )
  def test_are_those_whose_shape_the_number_of_classes_gives(self, model, expected):
    found = load.class_layers(config(model), 3, 2)
    self.assertEqual(found, {f'params/{path}' for path in expected})


if __name__ == '__main__':
  absltest.main()
