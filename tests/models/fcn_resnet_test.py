import jax
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.backbones import build_backbone
from seg_jax.models.fcn_resnet import FCNResNet
from tests.models.backbones.variables import images, num_parameters, random_like, shapes_of

WIDTH = 4  # channels of a small ResNet's first convolution
SMALL = {'num_classes': 3, 'backbone': 'resnet18', 'backbone_width': WIDTH / 64}


def computed(model, variables, x, **fields):
  """What the backbone of a small model, with `fields`, and the model itself give in evaluation."""
  backbone = build_backbone('resnet18', model.output_stride, width=WIDTH, **fields)
  of_backbone = {collection: tree['backbone'] for collection, tree in variables.items()}

  @jax.jit
  def run(variables, of_backbone, x):
    return backbone.apply(of_backbone, x), model.apply(variables, x)

  return jax.tree.map(float64, run(variables, of_backbone, x))


def float64(array):
  return np.asarray(array, np.float64)


def layers(variables):
  """The arrays by layer, kernels and statistics together."""
  return _merged(*(jax.tree.map(float64, variables[name]) for name in ('params', 'batch_stats')))


def _merged(a, b):
  if not isinstance(a, dict):
    return a
  return {name: _merged(value, b.get(name, {})) for name, value in (b | a).items()}


def conv(x, layer, rate=1):
  """The sum over the taps of a kernel, `rate` pixels apart, with zeros around the picture."""
  kernel, (height, width) = layer['kernel'], x.shape[1:3]
  border = rate * (len(kernel) - 1) // 2
  padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
  depthwise = kernel.shape[2] == 1 < x.shape[-1]
  y = layer.get('bias', 0)
  for u, v in np.ndindex(kernel.shape[:2]):
    seen = padded[:, rate * u : rate * u + height, rate * v : rate * v + width]
    y = y + (seen * kernel[u, v] if depthwise else seen @ kernel[u, v])
  return y


def norm_relu(x, layer):
  x = (x - layer['mean']) / np.sqrt(layer['var'] + 1e-5)
  return np.maximum(x * layer['scale'] + layer['bias'], 0)


def fcn_head(x, part):
  return conv(norm_relu(conv(x, part['conv']), part['norm']), part['score'])


def stretched(x, size):
  """Bilinear: pixels are squares, the border's are repeated; one line after the other."""
  for axis, new in zip((1, 2), size, strict=True):
    old = x.shape[axis]
    places = (np.arange(new) + 0.5) * old / new - 0.5
    x = np.apply_along_axis(lambda line, at=places: np.interp(at, range(len(line)), line), axis, x)
  return x


def assert_close(got, expected):
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


class FCNResNetTest(parameterized.TestCase):
  @parameterized.parameters(('resnet50', 35_322_218), ('resnet101', 54_314_346))
  def test_has_torchvisions_parameters(self, backbone, published):
    model = FCNResNet(num_classes=21, backbone=backbone)
    self.assertEqual(num_parameters(shapes_of(model)), published)

  def test_heads_equal_numpy(self):
    model, x = FCNResNet(**SMALL), images(2, 37, 52, 3)
    variables = random_like(shapes_of(model))
    features, outputs = computed(model, variables, x)
    self.assertEqual(features[32].shape[1:3], (5, 7))
    parts = layers(variables)
    assert_close(outputs['logits'], stretched(fcn_head(features[32], parts['head']), (37, 52)))
    (auxiliary,) = outputs['aux_logits']
    assert_close(auxiliary, stretched(fcn_head(features[16], parts['aux']), (37, 52)))

  def test_the_auxiliary_head_can_be_left_out(self):
    """It has 3 * 3 * 1024 * 256 and 256 * 21 kernels, a norm and biases."""
    model = FCNResNet(num_classes=21, auxiliary=False)
    by_hand = 9 * 1024 * 256 + 2 * 256 + 256 * 21 + 21
    self.assertEqual(num_parameters(shapes_of(model)), 35_322_218 - by_hand)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images(1, 33, 33, 3))
    self.assertEqual(out['aux_logits'], ())

  @parameterized.parameters(
    ({'backbone': 'resnet1'}, "model.backbone is 'resnet1'; did you mean"),
    ({'output_stride': 64}, 'model.output_stride is 64'),
    ({'norm': 'bach'}, 'model.norm'),
  )
  def test_what_cannot_be_built_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      shapes_of(FCNResNet(**SMALL | fields))


if __name__ == '__main__':
  absltest.main()
