"""Is one encoder enough? Labels alone, depth alone, and both by two decoders on one encoder.

    python -m experiments.several_decoders                    # U-Net's encoder
    python -m experiments.several_decoders --encoder=resnet18

All nets start with the same kernels, as far as they have the same layers, and see the same
generated scenes in the same order. With both decoders the losses are summed, or weighed by learned
uncertainty (Kendall et al. 2018, table 1). How long a prediction takes is measured of the net with
both decoders, asked for one output or for both.

Writes `several_decoders.json`, `several_decoders.png` and `README.md` into `--out`; started again
after a stop, it goes on.
"""

import functools

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from configs import several_decoders
from experiments import study
from seg_jax import pictures
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.tasks import build_task

ENCODER = flags.DEFINE_enum('encoder', 'unet', ['unet', 'resnet18'], 'that the decoders share')

STEPS = 2700  # of training, for each net; half of what the config trains
ROUNDS = 20  # of timing, one prediction of each in turns
NETS = {
  'labels alone': {'task': 'semantic', 'model.decoders': ('semantic',)},
  'depth alone': {'task': 'depth', 'model.decoders': ('depth',)},
  'both': {},
  'both, learned weights': {'model.uncertainty': True},
}
ASKED = {'labels': 'semantic', 'depth': 'depth', 'both': 'scene'}  # of the net with both decoders
LABELS = {'miou': 'mIoU', 'boundary_iou': 'boundary IoU'}
DEPTH = {
  'abs_rel': 'AbsRel',
  'rmse': 'RMSE, m',
  'rmse_log': 'RMSE of logs',
  'log10': 'log10',
  'delta1': 'δ < 1.25',
  'delta2': 'δ < 1.25²',
  'delta3': 'δ < 1.25³',
}
EXPLAINED = """
One seed. mIoU, boundary IoU and the δ, shares of pixels, are the better the larger, errors of depth
the better the smaller. Training is all steps at their median speed; multiply-adds and milliseconds
are those of a prediction for one scene.
"""


def config(fields: dict, steps: int):
  config = several_decoders.get_config()
  config.model.backbone = ENCODER.value
  if ENCODER.value != 'unet':
    config.model.backbone_width = 0.5
  config.update_from_flattened_dict(fields)
  config.train.update({'num_steps': steps, 'eval_every': steps, 'checkpoint_every': 100})
  return config


def scores_of(scores: dict) -> dict:
  """What a net is judged by; None where it has no such decoder."""
  depth = scores if 'abs_rel' in scores else scores.get('depth', {})
  labels = {name: scores.get(name) for name in LABELS}
  return labels | {name: depth.get(name) for name in DEPTH}


def predicted(net_config, workdir) -> tuple[list[tuple[dict, dict]], DatasetInfo]:
  """Record and predicted maps of some scenes, and what their classes are."""
  _, variables, task, source = study.load(net_config, workdir, 'val')
  predict = jax.jit(lambda variables, image: task.predict(variables, {'image': image}))
  shown = []
  for index in study.SCENES:
    record = source[index]
    maps = predict(variables, record['image'][None])
    shown.append((record, {name: np.asarray(maps[name][0]) for name in task.maps}))
  return shown, source.info


def costs(net_config, workdir) -> dict:
  """Multiply-adds and milliseconds of a prediction by a net with both decoders."""
  _, variables, _, source = study.load(net_config, workdir, 'val')
  image, rows, functions = source[0]['image'][None], {}, {}
  for asked, name in ASKED.items():
    net_config.task = name
    task = build_task(net_config, source.info)

    def maps(variables, image, task=task):
      predictions = task.predict(variables, {'image': image})
      return {name: predictions[name] for name in task.maps}

    traced = jax.jit(maps).trace(variables, image)
    functions[asked] = functools.partial(traced.lower().compile(), variables, image)
    rows[asked] = {'multiply_adds': study.multiply_adds(study.needed(traced.jaxpr.jaxpr))}
  times = study.in_turns(functions, ROUNDS)
  return {asked: row | {'milliseconds': times[asked]} for asked, row in rows.items()}


def chart(shown: dict, info) -> Figure:
  """The same scenes as each net sees them: labels above, depth below."""
  columns = ['picture', 'truth', *shown]
  records = [record for record, _ in next(iter(shown.values()))]
  figure = Figure(figsize=(1.9 * len(columns), 3.9 * len(records)), layout='constrained', dpi=110)
  axes = figure.subplots(2 * len(records), len(columns), squeeze=False)
  for place in axes.flat:
    place.set_axis_off()
  for title, place in zip(columns, axes[0], strict=True):
    place.set_title(title, fontsize=9)
  for i, record in enumerate(records):
    draw = {
      'label': functools.partial(pictures.colourise, palette=info.palette),
      'depth': functools.partial(pictures.colour_depth, like=record['depth']),
    }
    axes[2 * i, 0].imshow(record['image'], interpolation='nearest')
    for line, name in zip(axes[2 * i : 2 * i + 2], draw, strict=True):
      for place, maps in zip(
        line[1:], [record, *(net[i][1] for net in shown.values())], strict=True
      ):
        if name in maps:
          place.imshow(draw[name](maps[name]), interpolation='nearest')
  return figure


def page(result: dict) -> str:
  columns = ('net', *LABELS.values(), *DEPTH.values(), 'parameters', 'training')
  lines = [
    (
      net,
      *(None if row[key] is None else f'{100 * row[key]:.1f} %' for key in LABELS),
      *(None if row[key] is None else f'{row[key]:.3f}' for key in DEPTH),
      f'{row["parameters"]:,}',
      f'{row["seconds"] / 60:.1f} min',
    )
    for net, row in result['nets'].items()
  ]
  asked = [
    (what, f'{row["multiply_adds"] / 1e6:.0f} million', f'{row["milliseconds"]:.1f} ms')
    for what, row in result['asked'].items()
  ]
  return (
    '# Several decoders\n\n'
    f'{result["encoder"]} as the encoder, {result["steps"]} steps each on generated scenes, judged '
    f'on the 200 of val. {result["machine"]["name"]}.\n\n'
    f'{study.table(columns, lines)}\n\n'
    'The net with both decoders, asked for one thing or for both:\n\n'
    f'{study.table(("asked for", "multiply-adds", "time"), asked)}\n{EXPLAINED}\n'
    '![scenes](several_decoders.png)\n'
  )


def main(name):
  steps = study.STEPS.value or STEPS
  runs = study.runs(name) / ENCODER.value
  rows, shown = {}, {}
  for net, fields in NETS.items():
    net_config, workdir = config(fields, steps), runs / net.replace(', ', '_').replace(' ', '_')
    scores = study.trained(net_config, workdir)
    shown[net], info = predicted(net_config, workdir)
    rows[net] = scores_of(scores['val']) | {
      'parameters': study.num_parameters(net_config, info.num_classes),
      'seconds': scores['seconds'],
    }
  result = {
    'machine': study.machine(),
    'encoder': ENCODER.value,
    'steps': steps,
    'nets': rows,
    'asked': costs(config(NETS['both'], steps), runs / 'both'),
  }
  study.write(name, result, page(result), chart(shown, info))


if __name__ == '__main__':
  study.run(main)
