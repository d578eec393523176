"""What ImageNet is worth: DeepLab v3+ on CamVid from its weights, and from scratch.

    python -m experiments.pretraining --camvid=DIR --weights=FILE

`--weights` is a MobileNetV2 trained on ImageNet, with torchvision's names, TensorFlow's padding and
colours from -1 to 1. Both nets have the same layers, see the same pictures in the same order and
are scored on val as they learn. It takes more than an hour on two CPU cores.

Writes `pretraining.json`, `pretraining.png` and `README.md` into `--out`; started again after a
stop, it goes on.
"""

from absl import flags
from matplotlib.figure import Figure

from configs import deeplab_v3plus
from experiments import study
from seg_jax.errors import UserError
from seg_jax.training.logs import read_metrics

WEIGHTS = flags.DEFINE_string('weights', None, "MobileNetV2's, .safetensors or .pth")

STEPS = 1200  # of training, for each net
CURVE = 6  # points of it
EXPLAINED = """
Scores of test, and of val as the nets learn; one seed. The optimizer is the same for both.
"""


def config(weights: str, steps: int):
  config = deeplab_v3plus.get_config('camvid')
  config.dtype = 'float32'
  config.data.update({'dir': study.CAMVID.value, 'crop_size': (240, 320)})
  config.model.pretrained = weights
  config.model.features = 128
  config.optimizer.warmup_steps = 50
  often = steps // CURVE
  config.train.update({'num_steps': steps, 'eval_every': often, 'checkpoint_every': often})
  return config


def chart(rows: dict) -> Figure:
  """mIoU of val against steps on the left, each class's of test on the right."""
  figure = Figure(figsize=(11, 4.4), layout='constrained', dpi=130)
  left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
  for name, row in rows.items():
    left.plot(*zip(*row['curve'], strict=True), marker='o', label=name)
    classes = row['per_class']
    order = sorted(classes, key=lambda one: classes[one]['pixels'])
    right.scatter([100 * (classes[one]['iou'] or 0) for one in order], order, label=name)
  left.set_xlabel('steps')
  left.set_ylabel('mIoU of val')
  right.set_xlabel('IoU of a class of test, %; rare ones below')
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
  return figure


def page(result: dict) -> str:
  lines = [
    (
      name,
      *(f'{100 * row[key]:.1f}' for key in ('miou', 'boundary_iou')),
      f'{row["seconds"] / 60:.1f} min',
    )
    for name, row in result['nets'].items()
  ]
  return (
    '# What ImageNet is worth\n\n'
    f'DeepLab v3+ on MobileNetV2, {result["steps"]} steps on CamVid. '
    f'{result["machine"]["name"]}.\n\n'
    f'{study.table(("start", "mIoU", "boundary IoU", "training"), lines)}\n{EXPLAINED}\n'
    '![curves and classes](pretraining.png)\n'
  )


def main(name):
  if not (study.CAMVID.value and WEIGHTS.value):
    raise UserError(
      '--camvid, the folder that holds train, trainannot, ..., and --weights expected'
    )
  steps, rows = study.STEPS.value or STEPS, {}
  for net, weights in (('ImageNet', WEIGHTS.value), ('scratch', '')):
    workdir = study.runs(name) / net
    scores = study.trained(config(weights, steps), workdir)
    curve = [
      (line['step'], line['miou']) for line in read_metrics(workdir) if line['split'] == 'val'
    ]
    keys = ('miou', 'boundary_iou', 'per_class')
    rows[net] = {key: scores['test'][key] for key in keys}
    rows[net] |= {'seconds': scores['seconds'], 'curve': curve}
  result = {'machine': study.machine(), 'steps': steps, 'nets': rows}
  study.write(name, result, page(result), chart(rows))


if __name__ == '__main__':
  study.run(main)
