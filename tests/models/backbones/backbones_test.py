import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.backbones import BACKBONES, build_backbone
from tests.models.backbones.variables import NARROW, feature_shapes, shapes_of

# The others are the same code, with more of the same units or wider.
SAME = ('hrnet_w32', 'hrnet_w48', 'resnet34', 'resnet101', 'resnet152')
NAMES = tuple(name for name in BACKBONES if name not in SAME)
ATROUS = tuple(name for name in NAMES if not name.startswith('hrnet'))
SIZES = {4: (33, 70), 8: (5, 127), 16: (33, 70)}  # by output stride


def small(name, *arguments, **fields):
  return build_backbone(name, *arguments, **NARROW[name], **fields)


class BackbonesTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_maps_cover_a_picture_of_any_size_and_channels(self, name):
    self.check_sizes(name, 32, (65, 7))

  @parameterized.product(name=ATROUS, output_stride=tuple(SIZES))
  def test_so_they_do_at_any_output_stride(self, name, output_stride):
    self.check_sizes(name, output_stride, SIZES[output_stride])

  def check_sizes(self, name, output_stride, size):
    shapes = feature_shapes(small(name, output_stride), size, channels=5)
    self.assertContainsSubset({4, 8, 16, 32}, shapes)
    for stride, shape in shapes.items():
      reached = min(stride, output_stride)
      self.assertEqual(shape[:3], (1, *(-(-n // reached) for n in size)), stride)

  @parameterized.parameters(*ATROUS)
  def test_parameters_do_not_depend_on_the_output_stride(self, name):
    sparse, dense = (
      jax.tree.map(lambda x: x.shape, shapes_of(small(name, stride))) for stride in (32, 4)
    )
    self.assertEqual(sparse, dense)

  @parameterized.product(name=NAMES, norm=('batch', 'frozen_batch', 'group', 'none'))
  def test_every_norm_can_be_had(self, name, norm):
    """Where nothing normalises, each convolution has a bias."""
    model = small(name, norm=norm)
    shapes = shapes_of(model)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes['params'])]
    kernels, scales, biases = (
      {path[:-1] for path in paths if path[-1].key == kind} for kind in ('kernel', 'scale', 'bias')
    )
    self.assertEqual(biases, kernels if norm == 'none' else scales)
    self.assertEqual(bool(scales), norm != 'none')
    self.assertEqual('batch_stats' in shapes, norm in ('batch', 'frozen_batch'))

  @parameterized.parameters(*NAMES)
  def test_training_moves_batch_statistics_unless_they_are_frozen(self, name):
    for norm in ('batch', 'frozen_batch'):
      model = small(name, norm=norm)
      variables = shapes_of(model)
      leaves, structure = jax.tree.flatten(variables)

      def trained(*leaves, model=model, structure=structure):
        variables = jax.tree.unflatten(structure, leaves)
        _, after = model.apply(
          variables, jnp.zeros((1, 32, 32, 3)), train=True, mutable=['batch_stats']
        )
        return variables['batch_stats'], after['batch_stats']

      # A statistic that is not updated is an output that is an input.
      jaxpr = jax.make_jaxpr(trained)(*leaves).jaxpr
      count = len(jaxpr.outvars) // 2
      same = [a is b for a, b in zip(jaxpr.outvars[:count], jaxpr.outvars[count:], strict=True)]
      self.assertEqual((any(same), all(same)), (norm == 'frozen_batch',) * 2)

  @parameterized.parameters(*NAMES)
  def test_bfloat16_is_of_the_computation_alone(self, name):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # Flax's batch norm in bfloat16
    model = small(name, dtype=jnp.bfloat16)
    features, variables = jax.eval_shape(
      lambda x: model.init_with_output(jax.random.key(0), x), jnp.zeros((1, 32, 32, 3))
    )
    self.assertEqual({x.dtype for x in features.values()}, {jnp.dtype('bfloat16')})
    self.assertEqual({x.dtype for x in jax.tree.leaves(variables)}, {jnp.dtype('float32')})

  @parameterized.parameters(
    ('mobilenet', {}, "model.backbone is 'mobilenet'; did you mean 'mobilenet_v2'"),
    ('resnet18', {'output_stride': 2}, 'model.output_stride is 2; expected one of'),
    ('resnet18', {'output_stride': 12}, 'model.output_stride is 12; expected one of'),
    ('vgg16', {'padding': 'same'}, "model.padding is 'same', but vgg16 has no padding"),
  )
  def test_what_cannot_be_built_is_the_users_error(self, name, fields, message):
    with self.assertRaisesRegex(UserError, message):
      build_backbone(name, **fields)

  def test_a_larger_module_names_it(self):
    self.assertEqual(build_backbone('resnet18', name='backbone').name, 'backbone')


if __name__ == '__main__':
  absltest.main()
