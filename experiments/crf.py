"""What a dense CRF adds to an FCN-8s on CamVid: untrained behind it, and trained with it.

    python -m experiments.crf --camvid=DIR

As in CRF as RNN (Zheng et al. 2015, section 7 and table 1): an FCN-8s is trained first, then goes
on from there with the CRF on top and without it, for the same number of steps. The CRF's kernels
are those that are best on val, as in Krähenbühl and Koltun 2011, section 6. A small VGG16 (width
16), from scratch, on pictures of half the size; labels are judged at their own 360 x 480. Besides,
how long ten iterations take with each of the three filters, by the size of the picture.

Writes `crf.json`, `crf.png` and `README.md` into `--out`, and the nets' predictions side by side
into `--runs` (CamVid's pictures are for academic use). Started again after a stop, it goes on.
"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from configs import crf_rnn, fcn8s
from experiments import study
from seg_jax import atomic
from seg_jax.data.datasets.sources import Source
from seg_jax.errors import UserError
from seg_jax.ops import dense_crf, mean_field
from seg_jax.tasks import build_task
from seg_jax.tasks.base import Task
from seg_jax.training import evaluation
from seg_jax.training.mesh import make_mesh

STEPS = 500  # of each net, both stages together
FIRST_STAGE = 0.8  # of the steps
SIZES = ((45, 60), (90, 120), (180, 240), (360, 480))  # of the pictures that filters are timed on
MOST_FOR_EXACT = 90 * 120  # pixels, whose square its time grows as
ROUNDS = 3  # of timing
# What is chosen from: weights of the appearance kernel, and its deviations of pixels and colours.
# The smoothness kernel's deviation is the paper's, its weight as much of the other's as by default.
APPEARANCES, ALPHAS, BETAS = (0.5, 1.0, 2.0, 5.0, 10.0), (20.0, 40.0, 80.0), (4.0, 8.0, 13.0)
SMOOTHNESS, GAMMA = 0.3, 1.0
FIELDS = {
  'appearance': 'appearance',
  'theta_alpha': 'its pixels',
  'theta_beta': 'its colours',
  'smoothness': 'smoothness',
  'theta_gamma': 'its pixels',
}
CHOSEN_BY = 'boundary_iou'
EVERY = 6  # of val's pictures that is looked at to choose
EXPLAINED = """
Scores of test, one seed. Boundary IoU looks at the pixels near outlines alone. Of the kernels the
weights are told, and the deviations in pixels and in 255 values of a colour. The defaults are those
of `inference.crf`, which works at the pictures' full size; the chosen ones have the best boundary
IoU on a part of val, at the size that the net works at. All have the lattice's filter and ten
iterations; trained in are the weights and the costs of the labels, from the chosen ones on, at 20
times the rate of the net below. Training is both stages, without compilation and evaluation.
"""


def config(steps: int, start: Path | None = None):
  """A small FCN-8s on half-size pictures, from scratch or from the finished run `start`."""
  config = fcn8s.get_config('camvid')
  config.dtype = 'float32'
  config.data.update({'dir': study.CAMVID.value, 'image_scale': 0.5, 'crop_size': (128, 192)})
  config.model.update({'width': 16, 'fc_features': 256, 'dropout': 0.0})
  config.optimizer.update({'learning_rate': 2e-3, 'warmup_steps': 30})
  config.train.update({'num_steps': steps, 'eval_every': steps, 'checkpoint_every': 100})
  config.eval.update({'splits': 'test', 'batch_size': 4})
  if start:
    config.model.pretrained = str(start)
    config.data.batch_size = 4  # a CRF's step is slow
    config.optimizer.update({'learning_rate': 5e-4, 'warmup_steps': 10})
  return config


def with_crf(config, fields: dict):
  """`config`'s net as a CRF-RNN of these `fields`; it starts far above a net's weights."""
  config = crf_rnn.on(config.copy_and_resolve_references())
  config.model.update(fields)
  config.optimizer.groups = (('^crf/', 20.0, 1.0),)
  return config


def untrained(config, fcn: tuple, split: str) -> tuple[int, dict, Task, Source]:
  """`study.load` of the run `fcn` (its config, workdir), for the task of `config`.

  What `config` has and the run has not is as it starts: a CRF that has learned nothing.
  """
  step, variables, _, source = study.load(*fcn, split)
  task = build_task(config, source.info)
  fresh = jax.jit(task.init)(jax.random.key(0), {'image': source[0]['image'][None]})
  return step, variables | {'params': fresh['params'] | variables['params']}, task, source


def chosen(fcn: tuple, out: Path) -> dict:
  """The fields of the CRF-RNN that is best behind the run `fcn` on a part of val; kept in `out`."""
  path = out / 'chosen.json'
  if path.exists():
    return json.loads(path.read_text())
  _, variables, task, source = untrained(with_crf(fcn[0], {'theta_gamma': GAMMA}), fcn, 'val')

  @jax.jit
  def count(variables, batch, appearance, alpha, beta):
    kernels = {'appearance': appearance, 'smoothness': SMOOTHNESS * appearance}
    crf = variables['params']['crf']
    crf = crf | {name: jnp.full_like(crf[name], weight) for name, weight in kernels.items()}
    model = task.model.clone(theta_alpha=alpha, theta_beta=beta)
    variables = variables | {'params': variables['params'] | {'crf': crf}}
    predictions = dataclasses.replace(task, model=model).predict(variables, batch)
    return task.count(predictions, batch)

  batches = [
    {
      'image': record['image'][None],
      'label': record['label'][None].astype(np.int32),
      'valid': np.ones(1, bool),
    }
    for record in map(source.__getitem__, range(0, len(source), EVERY))
  ]
  scores = {}
  candidates = list(itertools.product(APPEARANCES, ALPHAS, BETAS))
  for candidate in tqdm(candidates, 'choose', unit='CRF', disable=None, dynamic_ncols=True):
    state = task.empty()
    for batch in batches:
      state = task.merge(state, jax.device_get(count(variables, batch, *candidate)))
    scores[candidate] = task.result(state)[CHOSEN_BY]
  appearance, alpha, beta = max(scores, key=scores.get)
  fields = {
    'appearance': appearance,
    'smoothness': SMOOTHNESS * appearance,
    'theta_alpha': alpha,
    'theta_beta': beta,
    'theta_gamma': GAMMA,
  }
  atomic.write_bytes(path, json.dumps(fields).encode())
  return fields


def judged(config, fcn: tuple, out: Path) -> dict:
  """The scores by `config` with the weights of the run `fcn`; kept in `out`."""
  path = out / 'eval' / 'test.json'
  if not path.exists():
    step, variables, task, source = untrained(config, fcn, 'test')
    evaluation.Evaluator(task, source, config, 'test', make_mesh())(step, variables, out)
  return json.loads(path.read_text())


def times(picture: np.ndarray, num_classes: int) -> dict:
  """Milliseconds of ten iterations, by the rows and columns of the picture and by the filter."""
  rows, rng = {}, np.random.default_rng(0)
  for height, width in SIZES:
    colours = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    colours = np.float32(colours[None])
    logits = rng.standard_normal((1, height, width, num_classes), np.float32)
    runs = {}
    for form in mean_field.FILTERS:
      if form != 'exact' or height * width <= MOST_FOR_EXACT:
        refine = jax.jit(functools.partial(dense_crf.refine, form=form))
        run = refine.lower(logits, colours).compile()
        runs[form] = functools.partial(run, logits, colours)
    rows[f'{height} x {width}'] = study.in_turns(runs, ROUNDS)
  return rows


def chart(result: dict) -> Figure:
  """Both measures of each net on the left, the filters' times on the right."""
  figure = Figure(figsize=(11, 4.2), layout='constrained', dpi=130)
  left, right = figure.subplots(1, 2)
  study.score_bars(left, result['nets'])
  for form in mean_field.FILTERS:
    timed = [row[form] for row in result['times'].values() if form in row]
    pixels = [height * width for height, width in SIZES]
    right.plot(pixels[: len(timed)], timed, marker='o', label=form)
  right.set_xscale('log')
  right.set_yscale('log')
  right.set_xlabel('pixels')
  right.set_ylabel('ten iterations, ms')
  right.grid(alpha=0.3)
  right.legend(frameon=False)
  right.spines[['top', 'right']].set_visible(False)
  return figure


def page(result: dict) -> str:
  nets = [
    (
      net,
      *(f'{100 * row[key]:.1f}' for key in ('miou', 'boundary_iou')),
      f'{row["seconds"] / 60:.1f} min',
    )
    for net, row in result['nets'].items()
  ]
  kernels = [
    (which, *(f'{fields[field]:g}' for field in FIELDS))
    for which, fields in result['kernels'].items()
  ]
  forms = list(mean_field.FILTERS)
  timed = [(size, *(row.get(form) for form in forms)) for size, row in result['times'].items()]
  return (
    '# A dense CRF\n\n'
    f'FCN-8s on a VGG16 of width 16, CamVid at half size, from scratch: {result["first_stage"]} '
    f'steps, then {result["steps"] - result["first_stage"]} more with the CRF and without it. '
    f'Judged on {result["num_images"]} pictures, on {result["machine"]["name"]}.\n\n'
    f'{study.table(("net", "mIoU", "boundary IoU", "training"), nets)}\n\n'
    f'{study.table(("kernels", *FIELDS.values()), kernels)}\n\n'
    'Milliseconds of ten iterations, for one picture of 11 classes:\n\n'
    f'{study.table(("rows x columns", *forms), timed)}\n{EXPLAINED}\n'
    '![scores and times](crf.png)\n'
  )


def main(name):
  if not study.CAMVID.value:
    raise UserError('--camvid is missing; expected the folder that holds train, trainannot, ...')
  runs, steps = study.runs(name), study.STEPS.value or STEPS
  first = round(FIRST_STAGE * steps)
  before = study.trained(config(first), runs / 'first')['seconds']
  plain = config(steps - first, runs / 'first')
  fcn = plain, runs / 'fcn8s'
  alone = study.trained(*fcn)
  fields = chosen(fcn, runs)
  joint = with_crf(plain, fields), runs / 'crf_rnn'
  together = study.trained(*joint)
  default = with_crf(plain, {}).model
  behind = plain.copy_and_resolve_references()
  behind.inference.crf = 'lattice'
  nets = {
    'FCN-8s': alone['test'],
    'a CRF behind it, by default': judged(behind, fcn, runs / 'behind'),
    'a CRF behind it, chosen': judged(joint[0], fcn, runs / 'behind_chosen'),
    'the CRF trained in': together['test'],
  }
  seconds = dict.fromkeys(nets, before + alone['seconds'])
  seconds['the CRF trained in'] = before + together['seconds']
  _, _, task, source = study.load(*fcn, 'test')
  result = {
    'machine': study.machine(),
    'steps': steps,
    'first_stage': first,
    'kernels': {'default': {field: default[field] for field in FIELDS}, 'chosen': fields},
    'num_images': alone['test']['num_images'],
    'nets': {
      net: {key: row[key] for key in ('miou', 'boundary_iou', 'per_class')}
      | {'seconds': seconds[net]}
      for net, row in nets.items()
    },
    'times': times(source[0]['image'], task.info.num_classes),
  }
  shown = {'FCN-8s': fcn, 'by default': (behind, fcn[1]), 'trained in': joint}
  study.side_by_side(shown, 'test', runs / 'side_by_side.png')
  study.write(name, result, page(result), chart(result))


if __name__ == '__main__':
  study.run(main)
