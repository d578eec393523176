import jax
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.models.backbones import build_backbone
from seg_jax.weights import convert, load, names
from seg_jax.weights.names import Table
from tests.models.backbones.variables import NARROW, random_like, shapes_of

# A narrow backbone for each table of `names.BACKBONES`: its name, fields, and the table's number.
BACKBONES = (
  ('resnet', 0, 'resnet18', {}),
  ('resnet', 0, 'resnet50', {}),
  ('resnet', 1, 'resnet50', {}),
  ('mobilenet_v2', 0, 'mobilenet_v2', {}),
  ('mobilenet_v2', 1, 'mobilenet_v2', {}),
  ('mobilenet_v2', 2, 'mobilenet_v2', {}),
  ('vgg16', 0, 'vgg16', {}),
  ('vgg16', 1, 'vgg16', {'norm': 'none'}),
  ('alexnet', 0, 'alexnet', {'norm': 'none'}),
  ('xception65', 0, 'xception65', {}),
  ('hrnet_w', 0, 'hrnet_w18', {'width': 4, 'modules': (1, 1, 2), 'units': 1}),
)


def table(**lines):
  return Table('somebody', lines, {})


def shapes(arrays):
  return {path: array.shape for path, array in arrays.items()}


class ConvertTest(parameterized.TestCase):
  @parameterized.parameters(*BACKBONES)
  def test_back_and_forth_is_the_same(self, kind, number, name, fields):
    variables = random_like(shapes_of(build_backbone(name, **NARROW.get(name, {}) | fields)))
    arrays = load.flat(jax.device_get(variables))
    theirs, nameless = convert.to_torch(arrays, names.BACKBONES[kind][number])
    self.assertEmpty(nameless)
    counters = [name for name in theirs if name.endswith('.num_batches_tracked')]
    for name in counters:
      self.assertEqual((theirs[name].shape, theirs.pop(name)), ((), 0))
    self.assertEqual(len(counters), sum(path.endswith('/mean') for path in arrays))
    again, homeless = convert.from_torch(theirs, names.BACKBONES[kind][number], shapes(arrays))
    self.assertEmpty(homeless)
    self.assertEqual(again.keys(), arrays.keys())
    for path, array in arrays.items():
      np.testing.assert_allclose(again[path], array, rtol=1e-6, err_msg=path)

  def test_a_convolution(self):
    theirs = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)  # out, in, rows, columns
    ours, _ = convert.from_torch(
      {'b.weight': theirs}, table(a='b'), {'params/a/kernel': (4, 5, 3, 2)}
    )
    ours = ours['params/a/kernel']
    for d, c, i, j in np.ndindex(theirs.shape):
      self.assertEqual(ours[i, j, c, d], theirs[d, c, i, j])

  def test_a_matrix_over_a_map_is_a_convolution_over_all_of_it(self):
    """PyTorch flattens [C, rows, columns]."""
    theirs = np.arange(120, dtype=np.float32).reshape(2, 60)
    lines = {'fc6': '0 matrix'}
    ours, _ = convert.from_torch(
      {'0.weight': theirs}, table(**lines), {'params/fc6/kernel': (4, 5, 3, 2)}
    )
    for i, j, c, d in np.ndindex(4, 5, 3, 2):
      self.assertEqual(ours['params/fc6/kernel'][i, j, c, d], theirs[d, (c * 4 + i) * 5 + j])
    again, _ = convert.to_torch(ours, table(**lines))
    np.testing.assert_array_equal(again['0.weight'], theirs)

  @parameterized.parameters((2, 3), (2, 3, 1, 1))
  def test_a_matrix_is_one_here_even_if_it_is_a_convolution_there(self, *shape):
    theirs = np.arange(6, dtype=np.float32).reshape(shape)
    ours, _ = convert.from_torch({'b.weight': theirs}, table(a='b'), {'params/a/kernel': (3, 2)})
    np.testing.assert_array_equal(ours['params/a/kernel'], [[0, 3], [1, 4], [2, 5]])

  @parameterized.parameters(
    ('features/conv1', 'features/norm1'), ('fc6', 'fc6_norm'), ('shortcut_conv', 'shortcut_norm')
  )
  def test_a_bias_before_a_norm_is_taken_from_its_mean(self, conv, norm):
    """The function is the same; with the norm's own mean or, in a net without norms, without."""
    rng = np.random.default_rng(0)
    x, bias, mean = rng.normal(size=(3, 4)).astype(np.float32)
    places = {f'params/{conv}/kernel': (1, 1, 2, 4), f'batch_stats/{norm}/mean': (4,)}
    lines = table(**{conv: '0', norm: '1'})
    ours, homeless = convert.from_torch({'0.bias': bias, '1.running_mean': mean}, lines, places)
    self.assertEmpty(homeless)
    np.testing.assert_allclose(x - ours[f'batch_stats/{norm}/mean'], x + bias - mean, atol=1e-6)
    ours, _ = convert.from_torch({'0.bias': bias}, table(**{conv: '0'}), places)
    np.testing.assert_allclose(x - ours[f'batch_stats/{norm}/mean'], x + bias, atol=1e-6)

  def test_a_bias_that_nothing_can_take_has_no_place(self):
    lines = table(conv='0', norm='1')
    for places in ({'params/conv/kernel': (1, 1, 2, 4)}, {'params/norm/scale': (4,)}):
      ours, homeless = convert.from_torch({'0.bias': np.zeros(4, np.float32)}, lines, places)
      self.assertEqual((ours, homeless), ({}, ['0.bias']))

  def test_a_bias_that_only_theirs_has_is_written_as_zeros(self):
    arrays = {'params/conv/kernel': np.ones((1, 1, 2, 4), np.float32)}
    theirs, _ = convert.to_torch(arrays, table(conv='0 bias'))
    np.testing.assert_array_equal(theirs['0.bias'], np.zeros(4))
    theirs, _ = convert.to_torch(arrays, table(conv='0'))
    self.assertEqual(theirs.keys(), {'0.weight'})

  def test_another_epsilon_is_made_up_for(self):
    var = np.float32([0.0, 0.01, 2.0])
    lines = Table('somebody', {'norm': '0'}, {}, extra_variance=1e-3 - 1e-5)
    ours, _ = convert.from_torch({'0.running_var': var}, lines, {'batch_stats/norm/var': (3,)})
    np.testing.assert_allclose(
      1 / np.sqrt(ours['batch_stats/norm/var'] + 1e-5), 1 / np.sqrt(var + 1e-3), rtol=1e-5
    )

  def test_what_is_called_nothing_here_or_there_is_told(self):
    ours, homeless = convert.from_torch(
      {'b.weight': np.ones(3), 'c.weight': np.ones(3), 'weight': np.ones(3), 'b.step': np.ones(3)},
      table(a='b'),
      {'params/a/scale': (3,)},
    )
    self.assertEqual((list(ours), homeless), (['params/a/scale'], ['c.weight', 'weight', 'b.step']))
    _, nameless = convert.to_torch({'params/d/scale': np.ones(3)}, table(a='b'))
    self.assertEqual(nameless, ['params/d/scale'])
    lacking = convert.missing(ours, table(a='b'), {'params/a/scale': (3,), 'params/a/bias': (3,)})
    self.assertEqual(lacking, ['b.bias'])


if __name__ == '__main__':
  absltest.main()
