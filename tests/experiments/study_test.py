import contextlib
import io
import json
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from jax import lax
from PIL import Image

from experiments import (
  crf,
  dense_prediction,
  fcn_strides,
  several_decoders,
  study,
  upsampling,
  what_or_where,
)
from seg_jax.errors import UserError
from seg_jax.models.conv_only import ConvOnly, multiply_adds
from seg_jax.models.unet import UNet
from seg_jax.ops.convolution import convolve
from seg_jax.training import loop
from tests.training import tiny


class TrainedTest(absltest.TestCase):
  def test_trains_once_and_refuses_other_settings_and_other_pictures(self):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    workdir = Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = tiny.config(train__num_steps=2, train__eval_every=2)
    with contextlib.redirect_stdout(io.StringIO()):
      first = study.trained(config, workdir)
    self.assertEqual(first['val'], json.loads((workdir / 'eval' / 'val.json').read_text()))
    self.assertGreater(first['seconds'], 0)
    with mock.patch.object(loop, 'train') as train:
      self.assertEqual(study.trained(config, workdir), first)
      train.assert_not_called()
    with self.assertRaisesRegex(UserError, 'train.num_steps is 2 there and 3 here.*--runs'):
      study.trained(tiny.config(train__num_steps=3, train__eval_every=2), workdir)
    known = json.loads((workdir / 'finished.json').read_text())
    (workdir / 'finished.json').write_text(json.dumps(known | {'val': 'five other pictures'}))
    with self.assertRaisesRegex(UserError, 'five other pictures'):
      study.trained(config, workdir)


class MultiplyAddsTest(absltest.TestCase):
  def test_counts_convolutions_as_by_hand(self):
    model = ConvOnly(num_classes=5, width=6, layers=3)
    x = jnp.zeros((1, 9, 11, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    counted = study.multiply_adds(jax.make_jaxpr(model.apply)(variables, x).jaxpr)
    self.assertEqual(counted, multiply_adds(model, 9, 11))

  def test_counts_matrix_products_loops_and_what_is_jitted(self):
    def function(x):
      return lax.map(jax.jit(lambda row: row @ jnp.zeros((4, 7))), x)

    jaxpr = jax.make_jaxpr(function)(jnp.zeros((5, 2, 4))).jaxpr
    self.assertEqual(study.multiply_adds(jaxpr), 5 * 2 * 4 * 7)

  def test_counts_a_convolution_as_defined_though_a_cpu_does_it_with_fewer_products(self):
    x, kernel = jnp.zeros((1, 64, 64, 64)), jnp.zeros((3, 3, 64, 128))
    jaxpr = jax.make_jaxpr(lambda x, kernel: convolve(x, kernel, (1, 1), 'SAME'))(x, kernel).jaxpr
    self.assertEqual(study.multiply_adds(jaxpr), 64 * 64 * kernel.size)


class StudiesTest(absltest.TestCase):
  def given(self, folder, **flags):
    """A study's flags; what it writes stays in `folder`."""
    for name, value in {'RUNS': folder / 'runs', 'OUT': folder / 'out', **flags}.items():
      self.enterContext(mock.patch.object(study, name, mock.Mock(value=value)))

  def test_the_three_nets_of_what_or_where_cost_the_same(self):
    configs = what_or_where.nets(700)
    target = what_or_where.multiply_adds(configs['with skips'])
    for config in configs.values():
      self.assertBetween(what_or_where.match(config, target) / target, 0.94, 1.06)

  def test_what_or_where_finds_windows_and_tells_classes_from_outlines(self):
    class Config:
      pass

    with mock.patch.object(
      what_or_where, 'build_model', lambda *_: ConvOnly(num_classes=2, width=4, layers=3)
    ):
      self.assertEqual(what_or_where.window(Config, size=16), 7)
    truth = np.zeros((60, 60), np.uint8)
    truth[10:30, 10:30], truth[40:50, 40:50] = 1, 2
    same = what_or_where.what_and_where([(None, truth, truth)])
    self.assertEqual(same, {'what': 1, 'where': 1})
    swapped = np.where(truth == 2, 1, truth)
    scores = what_or_where.what_and_where([(None, truth, swapped)])
    self.assertEqual(scores, {'what': 400 / 500, 'where': 1})
    moved = np.roll(truth, 1, 0)
    scores = what_or_where.what_and_where([(None, truth, moved)])
    self.assertEqual(scores['what'], 1)
    self.assertBetween(scores['where'], 0.3, 0.9)

  def test_the_ways_of_upsampling_differ_in_nothing_else(self):
    with mock.patch.object(study, 'CAMVID', mock.Mock(value=None)):
      first, *others = upsampling.nets(600).values()
    for config in others:
      config.model.upsampling = first.model.upsampling
      self.assertEqual(config.to_dict(), first.to_dict())

  def test_several_decoders_finds_the_scores_of_depth_at_the_top_or_below(self):
    depth = dict.fromkeys(several_decoders.DEPTH, 0.1)
    labels = {'miou': 0.8, 'boundary_iou': 0.5}
    nothing = dict.fromkeys(several_decoders.DEPTH)
    self.assertEqual(several_decoders.scores_of(labels), labels | nothing)
    self.assertEqual(several_decoders.scores_of(depth), dict.fromkeys(labels) | depth)
    self.assertEqual(several_decoders.scores_of(labels | {'depth': depth}), labels | depth)

  @pytest.mark.slow
  def test_several_decoders_from_scenes_to_its_page(self):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = several_decoders.config

    def smaller(*arguments):
      small = config(*arguments)
      small.data.update({'shapes_size': (16, 16), 'crop_size': (16, 16), 'batch_size': 4})
      small.model.update({'width': 2, 'depth': 1})
      small.optimizer.warmup_steps = 0
      small.train.log_every = 1
      return small

    self.given(folder, STEPS=2)
    self.enterContext(
      mock.patch.multiple(
        several_decoders, ENCODER=mock.Mock(value='unet'), config=smaller, ROUNDS=1
      )
    )
    with contextlib.redirect_stdout(io.StringIO()):
      several_decoders.main('several_decoders')
    result = json.loads((folder / 'out' / 'several_decoders.json').read_text())
    known = {
      net: {key for key in ('miou', 'abs_rel') if row[key] is not None}
      for net, row in result['nets'].items()
    }
    both = {'miou', 'abs_rel'}
    self.assertEqual([*known.values()], [{'miou'}, {'abs_rel'}, both, both])
    costs = {asked: row['multiply_adds'] for asked, row in result['asked'].items()}
    self.assertGreater(costs['both'], max(costs['labels'], costs['depth']))
    page = (folder / 'out' / 'README.md').read_text()
    for name in (*result['nets'], *result['asked']):
      self.assertIn(f'| {name} |', page)
    self.assertTrue((folder / 'out' / 'several_decoders.png').exists())

  def test_what_no_output_needs_costs_nothing(self):
    def function(x, kernel):
      return x @ kernel, jax.jit(lambda x: (x @ kernel) @ kernel)(x)

    jaxpr = jax.make_jaxpr(lambda *xs: function(*xs)[0])(jnp.zeros((2, 4)), jnp.zeros((4, 4))).jaxpr
    self.assertEqual(study.multiply_adds(jaxpr), 3 * 2 * 4 * 4)
    self.assertEqual(study.multiply_adds(study.needed(jaxpr)), 2 * 4 * 4)

  def test_fcn_strides_needs_camvid(self):
    with (
      mock.patch.object(study, 'CAMVID', mock.Mock(value=None)),
      self.assertRaisesRegex(UserError, '--camvid is missing'),
    ):
      fcn_strides.main('fcn_strides')

  def test_the_nets_of_crf_differ_in_the_crf_alone(self):
    with mock.patch.object(study, 'CAMVID', mock.Mock(value='CamVid')):
      plain = crf.config(100, Path('first'))
    joint = crf.with_crf(plain, {'theta_alpha': 40.0})
    self.assertEqual(joint.model.theta_alpha, 40)
    system = joint.model.system.to_dict() | {'pretrained': joint.model.pretrained}
    self.assertEqual(system, plain.model.to_dict())
    for config in (plain, joint):
      del config.model, config.name, config.optimizer.groups
    self.assertEqual(joint.to_dict(), plain.to_dict())

  @pytest.mark.slow
  def test_crf_from_camvid_to_its_page(self):
    """Small nets and pictures; the untrained CRFs and the trained one change the scores."""
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    camvid, rng = folder / 'CamVid', np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
      for kind, top in ((split, 256), (f'{split}annot', 12)):
        (camvid / kind).mkdir(parents=True)
        for i in range(4):
          shape = (40, 56, 3) if kind == split else (40, 56)
          picture = Image.fromarray(rng.integers(0, top, shape, np.uint8))
          picture.save(camvid / kind / f'{i}.png')
    config = crf.config

    def smaller(*arguments):
      small = config(*arguments)
      small.data.update({'crop_size': (32, 32), 'batch_size': 2})
      small.model.update({'width': 2, 'fc_features': 4})
      small.optimizer.warmup_steps = 0
      small.train.log_every = 1
      return small

    self.given(folder, CAMVID=str(camvid), STEPS=5)
    self.enterContext(mock.patch.object(crf, 'config', smaller))
    self.enterContext(mock.patch.multiple(crf, SIZES=((6, 8), (9, 12)), MOST_FOR_EXACT=50))
    with contextlib.redirect_stdout(io.StringIO()):
      crf.main('crf')
      page = (folder / 'out' / 'README.md').read_text()
      with mock.patch.object(loop, 'train') as train:
        crf.main('crf')  # again, from what is kept
        train.assert_not_called()
    result = json.loads((folder / 'out' / 'crf.json').read_text())
    judged = (folder / 'runs').glob('*/eval/test.json')
    entropies = {path.parts[-3]: json.loads(path.read_text())['cross_entropy'] for path in judged}
    self.assertEqual({*entropies}, {'first', 'fcn8s', 'behind', 'behind_chosen', 'crf_rnn'})
    self.assertLen({*entropies.values()}, 5)
    self.assertEqual((result['first_stage'], result['num_images']), (4, 4))
    self.assertEqual(result['kernels']['chosen']['theta_gamma'], 1)
    self.assertEqual(list(result['times']['6 x 8']), ['exact', 'lattice', 'window'])
    self.assertEqual(list(result['times']['9 x 12']), ['lattice', 'window'])
    for name in (*result['nets'], *result['times']):
      self.assertIn(f'| {name} |', page)
    self.assertTrue((folder / 'out' / 'crf.png').exists())
    self.assertTrue((folder / 'runs' / 'side_by_side.png').exists())

  def test_dense_prediction_takes_the_busiest_middles(self):
    class Source:
      def __len__(self):
        return 5

      def size(self, index):
        return (100, 200) if index == 4 else (129, 130)

      def __getitem__(self, index):
        label = np.zeros((129, 130), np.uint8)
        label[40 : 40 + 10 * index, 40] = 1
        return {'image': np.full((129, 130, 3), index, np.uint8), 'label': label}

    parts = dense_prediction.middles(Source())
    self.assertEqual([int(image[0, 0, 0]) for image, _ in parts], [3, 2, 1])
    self.assertEqual({label.shape for _, label in parts}, {(128, 128)})

  def test_unet_upconvolutions_are_counted(self):
    """Matrix products: a 2x2 up-convolution from 2w to w channels costs 2 w**2 a pixel."""
    model = UNet(num_classes=2, width=4, depth=1, norm='none')
    x = jnp.zeros((1, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    counted = study.multiply_adds(jax.make_jaxpr(model.apply)(variables, x).jaxpr)
    down, bottom = 9 * (3 * 4 + 4 * 4), 9 * (4 * 8 + 8 * 8) // 4
    up = 8 * 4 + 9 * (8 * 4 + 4 * 4) + 4 * 2
    self.assertEqual(counted, 64 * (down + bottom + up))


if __name__ == '__main__':
  absltest.main()
