"""What a dense CRF adds to an FCN-8s on CamVid: untrained behind it, and trained with it.

    python -m experiments.crf --camvid=DIR

As in CRF as RNN (Zheng et al. 2015, section 7 and table 1): an FCN-8s is trained first, then goes
on from there with the CRF on top and without it, for the same number of steps. A small VGG16 (width
16), from scratch, on pictures of half the size; labels are judged at their own 360 x 480. Besides,
how long ten iterations take with each of the three filters, by the size of the picture.

Writes `crf.json`, `crf.png` and `README.md` into `--out`, and the nets' predictions side by side
into `--runs` (CamVid's pictures are for academic use). Started again after a stop, it goes on.
"""

import functools
import json
from pathlib import Path

import cv2
import jax
import numpy as np
from matplotlib.figure import Figure

from configs import crf_rnn, fcn8s
from experiments import study
from seg_jax.errors import UserError
from seg_jax.ops import dense_crf, mean_field
from seg_jax.tasks import build_task
from seg_jax.training import evaluation
from seg_jax.training.mesh import make_mesh

STEPS = 500  # of each net, both stages together
FIRST_STAGE = 0.8  # of the steps
SIZES = ((45, 60), (90, 120), (180, 240), (360, 480))  # of the pictures that filters are timed on
MOST_FOR_EXACT = 90 * 120  # pixels, whose square its time grows as
ROUNDS = 3  # of timing
EXPLAINED = """
Scores of test, one seed. Boundary IoU looks at the pixels near outlines alone. `predict` and `eval`
put the CRF behind a net at the pictures' full size (`inference.crf`), CRF-RNN at the size that the
net works at; so the untrained one is judged at both. All have the lattice's filter, ten iterations
and the bandwidths of the defaults; trained in are the weights of the kernels and the costs of the
labels, at 20 times the rate of the net below. Training is both stages, without compilation and
evaluation.
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


def with_crf(config):
  """`config`'s net as a CRF-RNN; what the CRF learns starts far above a net's weights."""
  config = crf_rnn.on(config.copy_and_resolve_references())
  config.optimizer.groups = (('^crf/', 20.0, 1.0),)
  return config


def judged(config, fcn: tuple, out: Path) -> dict:
  """The scores by `config` with the weights of the run `fcn` (its config, workdir); kept in `out`.

  What `config` has and the run has not is as it starts: a CRF that has learned nothing.
  """
  path = out / 'eval' / 'test.json'
  if not path.exists():
    step, variables, _, source = study.load(*fcn, 'test')
    task = build_task(config, source.info)
    fresh = jax.jit(task.init)(jax.random.key(0), {'image': source[0]['image'][None]})
    variables = variables | {'params': fresh['params'] | variables['params']}
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
  forms = list(mean_field.FILTERS)
  timed = [(size, *(row.get(form) for form in forms)) for size, row in result['times'].items()]
  return (
    '# A dense CRF\n\n'
    f'FCN-8s on a VGG16 of width 16, CamVid at half size, from scratch: {result["first_stage"]} '
    f'steps, then {result["steps"] - result["first_stage"]} more with the CRF and without it. '
    f'Judged on {result["num_images"]} pictures, on {result["machine"]["name"]}.\n\n'
    f'{study.table(("net", "mIoU", "boundary IoU", "training"), nets)}\n\n'
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
  fcn, joint = (plain, runs / 'fcn8s'), (with_crf(plain), runs / 'crf_rnn')
  behind = plain.copy_and_resolve_references()
  behind.inference.crf = 'lattice'
  alone, together = study.trained(*fcn), study.trained(*joint)
  nets = {
    'FCN-8s': alone['test'],
    'a CRF behind it': judged(behind, fcn, runs / 'behind'),
    'a CRF behind it, at half size': judged(joint[0], fcn, runs / 'behind_half'),
    'the CRF trained in': together['test'],
  }
  seconds = dict.fromkeys(nets, before + alone['seconds'])
  seconds['the CRF trained in'] = before + together['seconds']
  _, _, task, source = study.load(*fcn, 'test')
  result = {
    'machine': study.machine(),
    'steps': steps,
    'first_stage': first,
    'num_images': alone['test']['num_images'],
    'nets': {
      net: {key: row[key] for key in ('miou', 'boundary_iou', 'per_class')}
      | {'seconds': seconds[net]}
      for net, row in nets.items()
    },
    'times': times(source[0]['image'], task.info.num_classes),
  }
  shown = {'FCN-8s': fcn, 'a CRF behind it': (behind, fcn[1]), 'the CRF trained in': joint}
  study.side_by_side(shown, 'test', runs / 'side_by_side.png')
  study.write(name, result, page(result), chart(result))


if __name__ == '__main__':
  study.run(main)
