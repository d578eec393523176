"""What every system costs: parameters and multiply-adds, beside what was published.

    python -m experiments.model_table

Nothing is computed: the shapes of each layer's kernel and output are enough. A multiply-add is one
product of a kernel's number and a value, padding included; norms, activations, resizing and pooling
are not counted, as is usual.

Writes `model_table.json`, `model_table.png` and `README.md` into `--out`.
"""

import importlib
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from experiments import study
from seg_jax.models import build_model
from seg_jax.models.backbones.hrnet import HRNetClassifier
from seg_jax.models.classifier import Classifier
from seg_jax.models.fcn import UpScore
from seg_jax.models.unet import UpConv

CLASSES = 21
EXPLAINED = """
Parameters are what is trained, running statistics not counted. torchvision's figures are those in
its code beside its weights (systems at 520 x 520, whose maps at output stride 8 are as large as
those of 513 x 513), timm's those of its model cards, DeepLab v3+'s those of its paper's tables.
"""


class Row(NamedTuple):
  name: str
  model: nn.Module
  size: int = 513  # rows and columns of the picture
  parameters: float | None = None  # published, in millions
  multiply_adds: float | None = None  # published, in thousand millions
  source: str = ''
  note: str = ''  # on what differs


def system(config: str, **fields) -> nn.Module:
  """The net of `configs/CONFIG.py` for VOC's 21 classes, with other `fields`."""
  full = importlib.import_module(f'configs.{config}').get_config('voc2012')
  full.dtype = 'float32'
  full.model.update(fields)
  return build_model(full, CLASSES)


def classifiers() -> list[Row]:
  published = {
    'resnet18': (11.689512, 1.814),
    'resnet34': (21.797672, 3.664),
    'resnet50': (25.557032, 4.089),
    'resnet101': (44.549160, 7.801),
    'resnet152': (60.192808, 11.514),
    'mobilenet_v2': (3.504872, 0.301),
    'alexnet': (61.100840, 0.714),
    'vgg16': (138.365992, 15.47),
  }
  rows = [
    Row(f'{name}, classifier', Classifier(backbone=name), 224, *figures, 'torchvision')
    for name, figures in published.items()
  ]
  notes = {
    'vgg16': 'with batch norm; the biases that it takes away again are left out',
    'alexnet': 'as trained here, with batch norm',
  }
  rows = [row._replace(note=notes.get(row.name.partition(',')[0], '')) for row in rows]
  return [
    *rows,
    Row('xception65, classifier', Classifier(backbone='xception65'), 299, 39.92, 13.96, 'timm'),
    Row('hrnet_w18, classifier', HRNetClassifier(width=18), 224, 21.30, 4.32, 'timm'),
    Row('hrnet_w48, classifier', HRNetClassifier(width=48), 224, 77.47, 17.34, 'timm'),
  ]


def systems() -> list[Row]:
  fc = {'width': 64, 'fc_features': 4096}
  v3 = {'multi_grid': (1,), 'output_stride': 8, 'auxiliary': True}
  plus = {'padding': 'symmetric', 'output_stride': 16}
  refine = {'backbone': 'resnet101'}
  return [
    Row('sliding window, à trous', system('sliding_window')),
    Row('multi-scale', system('multi_scale')),
    Row('recurrent scene labelling', system('recurrent_scene')),
    Row('convolutions only', system('conv_only')),
    Row('FCN-AlexNet', system('fcn_alexnet', **fc), 513, 57, None, 'FCN paper, table 1'),
    Row('FCN-32s', system('fcn32s', **fc), 513, 134, None, 'FCN paper, table 1'),
    Row('FCN-16s', system('fcn16s', **fc)),
    Row('FCN-8s', system('fcn8s', **fc)),
    Row('DeconvNet', system('deconvnet', fc_size=7, **fc), 513, 252, None, 'layers of the paper'),
    Row('SegNet', system('segnet', width=64), 513, 29.46, None, 'ENet paper, table 3'),
    Row('SegNet-Basic', system('segnet_basic', width=64), 513, 1.425, None, 'paper, table 1'),
    Row('U-Net', system('unet', width=64), 513, 31.03, None, 'layers of the paper'),
    Row(
      'FCN-ResNet-50', system('fcn_resnet', backbone='resnet50'), 513, 35.322218, 152.717
    )._replace(source='torchvision'),
    Row(
      'FCN-ResNet-101', system('fcn_resnet', backbone='resnet101'), 513, 54.314346, 232.738
    )._replace(source='torchvision'),
    Row('DeepLab v3, ResNet-50', system('deeplab_v3', backbone='resnet50', **v3), 513)._replace(
      parameters=42.004074, multiply_adds=178.722, source='torchvision'
    ),
    Row('DeepLab v3, ResNet-101', system('deeplab_v3', backbone='resnet101', **v3), 513)._replace(
      parameters=60.996202, multiply_adds=258.743, source='torchvision'
    ),
    Row('DeepLab v3 in cascade, ResNet-50', system('deeplab_cascade', backbone='resnet50')),
    Row('DeepLab v3+, ResNet-101', system('deeplab_v3plus', backbone='resnet101', **plus))._replace(
      multiply_adds=101.28,
      source='paper, table 3',
      note="the paper's 3x3 convolutions "
      'are not separable there, and its ResNet-101 has three 3x3 convolutions in its stem',
    ),
    Row(
      'DeepLab v3+, Xception-65', system('deeplab_v3plus', backbone='xception65', **plus)
    )._replace(multiply_adds=54.17, source='paper, table 5'),
    Row('DeepLab v3+, MobileNetV2', system('deeplab_v3plus', backbone='mobilenet_v2', **plus)),
    Row('RefineNet-101', system('refinenet', cascade=4, **refine)),
    Row('RefineNet-101, two blocks', system('refinenet', cascade=2, **refine)),
    Row('RefineNet-101, one block', system('refinenet', cascade=1, **refine)),
    Row('HRNetV2-W18', system('hrnet', backbone='hrnet_w18')),
    Row('HRNetV2-W48', system('hrnet', backbone='hrnet_w48'), 513, 65.9, None, 'paper, table 3'),
  ]


def cost(model: nn.Module, size: int) -> dict:
  """Parameters and multiply-adds of `model` on one picture of `size` x `size` pixels."""
  multiply_adds = []

  def count(function, args, kwargs, context):
    output = function(*args, **kwargs)
    layer = context.module
    if context.method_name == '__call__' and layer.has_variable('params', 'kernel'):
      # Each pixel meets the whole kernel: of what goes out, or in, where the layer enlarges.
      pixels = args[0] if isinstance(layer, (UpConv, UpScore)) else output
      kernel = layer.get_variable('params', 'kernel')
      multiply_adds.append(math.prod(pixels.shape[1:-1]) * kernel.size)
    return output

  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)
  with nn.intercept_methods(count):
    jax.eval_shape(lambda v, x: model.apply(v, x), variables, image)
  parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  return {'parameters': parameters, 'multiply_adds': sum(multiply_adds)}


def chart(rows: list[dict]) -> Figure:
  """Multiply-adds and parameters of the systems, the costliest below."""
  rows = sorted(rows, key=lambda row: row['multiply_adds'])
  figure = Figure(figsize=(11, 6.5), layout='constrained', dpi=130)
  scales = {
    'multiply_adds': (1e9, 'multiply-adds of a picture of 513 x 513, thousand millions'),
    'parameters': (1e6, 'parameters, millions'),
  }
  for axes, (key, (unit, label)) in zip(
    figure.subplots(1, 2, sharey=True), scales.items(), strict=True
  ):
    bars = axes.barh([row['name'] for row in rows], [row[key] / unit for row in rows])
    axes.bar_label(bars, fmt='%.3g', padding=2, fontsize=7)
    axes.set(xscale='log', xlabel=label)
    axes.margins(x=0.12)
    axes.tick_params(labelsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.yaxis.set_inverted(True)
  return figure


def page(result: dict) -> str:
  columns = ('net', 'picture', 'parameters, M', 'published', 'GMAC', 'published', 'source')
  lines = []
  for row in result['rows']:
    known = row['published']
    lines.append(
      (
        row['name'],
        row['size'],
        f'{row["parameters"] / 1e6:.2f}',
        known['parameters'] and f'{known["parameters"]:.2f}',
        f'{row["multiply_adds"] / 1e9:.2f}',
        known['multiply_adds'] and f'{known["multiply_adds"]:.2f}',
        row['source'] or None,
      )
    )
  notes = [f'- {row["name"]}: {row["note"]}.' for row in result['rows'] if row['note']]
  return (
    f'# Parameters and multiply-adds\n\nSystems have {CLASSES} classes, classifiers 1000.\n\n'
    f'{study.table(columns, lines)}\n{EXPLAINED}\nWhere they differ:\n\n'
    + '\n'.join(notes)
    + '\n\n'
    '![multiply-adds and parameters](model_table.png)\n'
  )


def main(name):
  rows = []
  for row in [*classifiers(), *systems()]:
    published = {'parameters': row.parameters, 'multiply_adds': row.multiply_adds}
    rows.append(
      {'name': row.name, 'size': row.size, **cost(row.model, row.size)}
      | {'published': published, 'source': row.source, 'note': row.note}
    )
    print(f'{row.name}: {rows[-1]["parameters"]:,}, {rows[-1]["multiply_adds"] / 1e9:.2f} GMAC')
  result = {'rows': rows}
  study.write(name, result, page(result), chart([row for row in rows if row['size'] == 513]))


if __name__ == '__main__':
  study.run(main)
