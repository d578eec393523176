import pytest
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.backbones import build_backbone
from seg_jax.weights import convert, names
from tests.weights import reference

QUICK = ('resnet18', 'mobilenet_v2', 'mobilenetv2_100', 'vgg16', 'vgg16_bn', 'alexnet')
SLOW = tuple(name for name in reference.CASES if name not in QUICK)


class TorchTest(parameterized.TestCase):
  """The tables beside the models themselves, which are made without values."""

  @parameterized.parameters(*QUICK)
  def test_every_array_has_one_name_and_the_shape_that_it_has_there(self, name):
    self.check(reference.CASES[name])

  @parameterized.parameters(*SLOW)
  @pytest.mark.slow
  def test_every_array_of_deeper_nets_has_too(self, name):
    self.check(reference.CASES[name])

  @parameterized.parameters('resnet18', 'vgg16', 'vgg16_bn')
  @pytest.mark.slow
  def test_so_it_has_under_timms_names(self, name):
    self.check(reference.CASES[name]._replace(whose='timm'))

  def check(self, case):
    theirs = {name: tuple(x.shape) for name, x in reference.build(case).state_dict().items()}
    ours = reference.without_values(reference.our_shapes(case.ours))
    tables = [table for table in case.tables if case.whose in (table.whose, 'timm')]
    named = [convert.to_torch(ours, table) for table in tables]
    arrays, nameless = max(named, key=lambda found: len(theirs.keys() & found[0].keys()))
    self.assertEmpty(nameless)
    self.assertEqual({name: x.shape for name, x in arrays.items()}, theirs)
    table = tables[[found[0] is arrays for found in named].index(True)]
    again, homeless = convert.from_torch(arrays, table, {path: x.shape for path, x in ours.items()})
    counters = [name for name in theirs if name.endswith('.num_batches_tracked')]
    self.assertCountEqual(homeless, counters)
    self.assertEqual(
      {path: x.shape for path, x in again.items()}, {path: x.shape for path, x in ours.items()}
    )

  @parameterized.parameters(18, 50)
  @pytest.mark.slow
  def test_norm_and_relu_before_the_convolutions(self, depth):
    """timm's resnetv2, but for its head; the norms of the other stages are ours alone."""
    case = reference.Case('timm', f'resnetv2_{depth}', build_backbone(f'resnet{depth}'))
    theirs = {name: tuple(x.shape) for name, x in reference.build(case).state_dict().items()}
    theirs = {name: shape for name, shape in theirs.items() if not name.startswith('head.')}
    ours = reference.our_shapes(build_backbone(f'resnet{depth}', preactivation=True))
    (table,) = names.BACKBONES['preactivation']
    arrays, nameless = convert.to_torch(reference.without_values(ours), table)
    self.assertEqual({name: x.shape for name, x in arrays.items()}, theirs)
    self.assertEqual({path.split('/')[1] for path in nameless}, {'norm_4', 'norm_8', 'norm_16'})


class HuggingFaceTest(parameterized.TestCase):
  """Names as in transformers' sources, by hand."""

  @parameterized.parameters(
    ('resnet', 'conv1', 'embedder.embedder.convolution'),
    ('resnet', 'norm1', 'embedder.embedder.normalization'),
    ('resnet', 'layer1_0/shortcut_conv', 'encoder.stages.0.layers.0.shortcut.convolution'),
    ('resnet', 'layer4_2/norm3', 'encoder.stages.3.layers.2.layer.2.normalization'),
    ('mobilenet_v2', 'conv0', 'conv_stem.first_conv.convolution'),
    ('mobilenet_v2', 'block1/depthwise_norm', 'conv_stem.conv_3x3.normalization'),
    ('mobilenet_v2', 'block1/project_conv', 'conv_stem.reduce_1x1.convolution'),
    ('mobilenet_v2', 'block2/expand_conv', 'layer.0.expand_1x1.convolution'),
    ('mobilenet_v2', 'block17/project_norm', 'layer.15.reduce_1x1.normalization'),
  )
  def test_names(self, kind, ours, theirs):
    (table,) = (table for table in names.BACKBONES[kind] if table.whose == 'Hugging Face')
    self.assertEqual(names.translate(table.backbone, ours), theirs)
    self.assertEqual(names.translate(names.backwards(table.backbone), theirs), ours)

  @parameterized.parameters(('resnet50', 'resnet.'), ('mobilenet_v2', 'mobilenet_v2.'))
  def test_every_array_has_a_name_of_its_own(self, backbone, inside):
    ours = reference.without_values(reference.our_shapes(reference.CASES[backbone].ours))
    tables = names.tables({'name': 'classifier', 'backbone': backbone})
    table = next(table for table in tables if table.whose == 'Hugging Face')
    arrays, nameless = convert.to_torch(ours, table)
    self.assertEmpty(nameless)
    counted = [name for name in arrays if not name.endswith('.num_batches_tracked')]
    self.assertLen(counted, len(ours))
    outside = {name for name in arrays if not name.startswith(inside)}
    self.assertLen(outside, 2)  # the classifier's weight and bias


class NamesTest(parameterized.TestCase):
  def test_numbers_and_the_first_line_count_in_both_directions(self):
    lines = {'a1/b': 'x.0', 'a{}/b': 'y.{}.0', 'c{}_{}': 'z.{-1}.{+2}', 'd*': None, 'd1': 'w'}
    for ours, theirs in {'a1/b': 'x.0', 'a12/b': 'y.12.0', 'c3_4': 'z.2.6'}.items():
      self.assertEqual(names.translate(lines, ours), theirs)
      self.assertEqual(names.translate(names.backwards(lines), theirs), ours)
    for nothing in ('d1', 'dd', 'a/b', 'a1/bb', 'e'):
      self.assertIsNone(names.translate(lines, nothing))

  def test_what_stands_behind_a_name_is_no_part_of_it(self):
    lines = {'fc{}': 'classifier.{-6} matrix'}
    self.assertEqual(names.translate(lines, 'fc6'), 'classifier.0 matrix')
    self.assertEqual(names.translate(names.backwards(lines), 'classifier.1'), 'fc7')

  @parameterized.parameters(
    ({'name': 'deeplab_v3plus', 'backbone': 'mobilenet_v2'}, 'backbone/conv0', 'features.0.0'),
    ({'name': 'refinenet', 'backbone': 'resnet101'}, 'backbone/layer3_22/conv1', 'layer3.22.conv1'),
    ({'name': 'refinenet', 'preactivation': True}, 'backbone/conv1', 'stem.conv'),
    ({'name': 'hrnet'}, 'backbone/stage4_2/fuse3_0_1_conv', 'stage4.2.fuse_layers.3.0.1.0'),
    ({'name': 'fcn'}, 'conv5_3', 'features.40 bias'),
    ({'name': 'fcn', 'backbone': 'vgg16'}, 'fc7', 'classifier.3 matrix'),
    ({'name': 'segnet'}, 'norm1_1', 'features.1'),
    ({'name': 'deconvnet'}, 'fc6', 'classifier.0 matrix'),
    ({'name': 'deeplab_v3'}, 'aspp/pool_norm', 'classifier.0.convs.4.2'),
    ({'name': 'fcn_resnet', 'backbone': 'resnet18'}, 'aux/score', 'aux_classifier.4'),
  )
  def test_a_systems_layers(self, model, ours, theirs):
    self.assertEqual(names.translate(names.tables(model)[0].names, ours), theirs)

  @parameterized.parameters(
    ({'name': 'unet'},), ({'name': 'fcn', 'backbone': 'alexnet'},), ({'name': 'segnet_basic'},)
  )
  def test_layers_that_nobody_else_has(self, model):
    self.assertEmpty(names.tables(model))

  def test_the_cascade_of_deeplab_is_ours_alone(self):
    for table in names.tables({'name': 'deeplab_v3', 'backbone': 'resnet50'}):
      self.assertIsNotNone(names.translate(table.names, 'backbone/layer4_0/conv1'))
      for stage in (5, 6, 7):
        self.assertIsNone(names.translate(table.names, f'backbone/layer{stage}_0/conv1'))

  @parameterized.parameters(
    ({'name': 'unet'}, "'unet', which torchvision has not; expected one of fcn_resnet, deeplab_v3"),
    ({'name': 'deeplab_v3', 'backbone': 'mobilenet_v2'}, 'on a ResNet'),
    ({'name': 'fcn'}, 'torchvision has not'),
    ({'name': 'fcn_resnet', 'norm': 'group'}, "model.norm is 'group'; expected 'batch'"),
  )
  def test_what_torchvision_has_not_whole(self, model, message):
    with self.assertRaisesRegex(UserError, message):
      names.whole(model)


if __name__ == '__main__':
  absltest.main()
