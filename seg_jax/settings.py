"""The config of a run: its values checked, and kept in its workdir as `config.json`."""

import json
import math
import re
from pathlib import Path

import ml_collections

from seg_jax import atomic
from seg_jax.errors import UserError, nearest


def _is_group(pattern, rate, decay) -> bool:
  re.compile(pattern)
  return 0 <= rate < math.inf and 0 <= decay < math.inf


# What is expected, whether a value is that, and the keys it is expected of.
CHECKS = (
  (
    'whole number above 0',
    lambda v: type(v) is int and v > 0,
    'data.batch_size data.channels data.num_threads data.max_instances model.width model.depth '
    'model.fc_features model.fc_size model.layers model.kernel_size model.scales model.instances '
    'model.hidden model.convolutions model.features model.low_features model.radius '
    'model.train_iterations model.iterations model.box_features model.mask_convs '
    'model.semantic_width '
    'model.anchor_samples model.candidates model.detections '
    'train.num_steps train.steps_per_call train.accumulation train.log_every train.eval_every '
    'train.checkpoint_every train.keep_last eval.batch_size eval.size_multiple eval.num_pictures',
  ),
  (
    'number of 0 or more',
    lambda v: 0 <= v < math.inf,
    'data.num_workers data.cache_gib loss.cross_entropy loss.dice loss.focal loss.lovasz '
    'data.max_depth loss.weights.semantic loss.weights.depth '
    'loss.focal_gamma loss.auxiliary optimizer.learning_rate optimizer.weight_decay '
    'model.appearance model.smoothness '
    'inference.min_stuff_area '
    'optimizer.clip_norm optimizer.poly_power optimizer.step_factor optimizer.warmup_steps',
  ),
  (
    'number above 0',
    lambda v: 0 < v < math.inf,
    'model.theta_alpha model.theta_beta model.theta_gamma inference.blur',
  ),
  (
    'whole number of 0 or more',
    lambda v: type(v) is int and v >= 0,
    'model.proposal_convs model.box_convs',
  ),
  ('whole number of 4 or more', lambda v: type(v) is int and v >= 4, 'model.box_samples'),
  ('whole number from 0 to 2**32 - 1', lambda v: type(v) is int and 0 <= v < 2**32, 'seed'),
  (
    'number from 0 to below 1',
    lambda v: 0 <= v < 1,
    'data.photometric loss.label_smoothing optimizer.ema_decay optimizer.momentum model.dropout '
    'inference.smoothing inference.min_score model.score_threshold',
  ),
  (
    'number between 0 and 1',
    lambda v: 0 < v < 1,
    'inference.threshold model.proposal_overlap model.overlap',
  ),
  (
    'number of pixels, or -1 for edges as soft as the probabilities',
    lambda v: 0 <= v < math.inf or v == -1,
    'inference.feather',
  ),
  (
    'pair of whole numbers above 0, (rows, columns)',
    lambda v: len(v) == 2 and all(type(n) is int and n > 0 for n in v),
    'data.crop_size data.shapes_size',
  ),
  (
    'tuple of 5 numbers above 0, one for each stride from 4 to 64',
    lambda v: isinstance(v, tuple) and len(v) == 5 and all(0 < n < math.inf for n in v),
    'model.anchor_scales',
  ),
  (
    'tuple of numbers above 0, height over width',
    lambda v: isinstance(v, tuple) and v and all(0 < n < math.inf for n in v),
    'model.anchor_aspects',
  ),
  (
    'pair of whole numbers above 0, in training and after it',
    lambda v: len(v) == 2 and all(type(n) is int and n > 0 for n in v),
    'model.proposals',
  ),
  (
    'pair (low, high) with 0 < low <= high',
    lambda v: len(v) == 2 and 0 < v[0] <= v[1] < math.inf,
    'data.scale_range',
  ),
  (
    'tuple of whole numbers above 0',
    lambda v: isinstance(v, tuple) and v and all(type(n) is int and n > 0 for n in v),
    'model.atrous_rates model.multi_grid',
  ),
  (
    "tuple of 'instances' and 'depth', or ()",
    lambda v: isinstance(v, tuple) and set(v) <= {'instances', 'depth'},
    'data.extras',
  ),
  (
    'whole number above 0, or -1 for what is left',
    lambda v: type(v) is int and (v > 0 or v == -1),
    'mesh.data mesh.space',
  ),
  (
    "tuple of different names, such as ('semantic', 'depth')",
    lambda v: isinstance(v, tuple) and len(set(v)) == len(v) > 0 and {*map(type, v)} == {str},
    'model.decoders',
  ),
  ('number of bits, 8 or 16', lambda v: v in (8, 16), 'data.bits'),
  (
    'number above 0 and at most 8',
    lambda v: 0 < v <= 8,
    'data.image_scale model.backbone_width',
  ),
  (
    'tuple of numbers in [0, 1]',
    lambda v: isinstance(v, tuple) and all(0 <= n <= 1 for n in v),
    'data.mean',
  ),
  (
    'tuple of numbers in (0, 1]',
    lambda v: isinstance(v, tuple) and all(0 < n <= 1 for n in v),
    'data.std',
  ),
  (
    'tuple of growing shares of train.num_steps, between 0 and 1',
    lambda v: all(0 < n < 1 for n in v) and list(v) == sorted(set(v)),
    'optimizer.step_boundaries',
  ),
  (
    'tuple of (regular expression, times the learning rate, times the weight decay), or ()',
    lambda v: isinstance(v, tuple) and all(_is_group(*group) for group in v),
    'optimizer.groups',
  ),
  (
    'step, or best or last',
    lambda v: v in ('best', 'last') or v.isdecimal(),
    'eval.checkpoint',
  ),
)

# What the machine decides, not the run: never taken from a workdir's config.
OF_MACHINE = ('parallel', 'mesh.data', 'mesh.space', 'distributed', 'profile')

# What may differ from one start of a run to the next: none of it changes a parameter by more than
# rounding (but dropout, which draws other masks under pmap). The directory may move; that it holds
# the same pictures is known from the checkpoint.
FREE = (
  *OF_MACHINE,
  'data.dir',
  'data.num_threads',
  'data.num_workers',
  'data.cache_gib',
  'optimizer.sharded',
  'train.steps_per_call',
  'train.recompute',
  'train.log_every',
  'train.eval_every',
  'train.checkpoint_every',
  'train.keep_last',
  'eval.batch_size',
  'eval.size_multiple',
  'eval.checkpoint',
  'eval.num_pictures',
  'inference.crf',
  'inference.threshold',
  'inference.min_score',
  'inference.min_stuff_area',
  'inference.background',
  'inference.blur',
  'inference.foreground',
  'inference.repaint',
  'inference.paint',
  'inference.feather',
  'inference.smoothing',
)
CRFS = ('none', 'exact', 'lattice', 'window')
# Of data.extras, by what is decoded.
NEEDED = {'depth': 'depth', 'instance': 'instances', 'panoptic': 'instances'}


def check(config: ml_collections.ConfigDict) -> None:
  """Values that no run can work with.

  Raises:
    UserError: the first of them, with what was expected.
  """
  values = flat(config.to_dict())
  for expected, holds, keys in CHECKS:
    keys = keys.split()
    # What is expected of a system's field is expected of it inside another system, too.
    inside = [key.replace('model.', 'model.system.') for key in keys if key.startswith('model.')]
    for key in (*keys, *inside):
      if key not in values:
        continue
      try:
        good = holds(values[key])
      except (TypeError, AttributeError, re.error):
        good = False
      if not good:
        raise UserError(f'{key} is {values[key]!r}; expected a {expected}')
  if config.parallel not in ('jit', 'pmap'):
    raise UserError(f"parallel is {config.parallel!r}; expected 'jit' or 'pmap'")
  decoders = config.model.get('decoders', ()) if config.task == 'scene' else (config.task,)
  for decoder, extra in NEEDED.items():
    if decoder in decoders and extra not in config.data.extras:
      raise UserError(
        f'data.extras is {config.data.extras!r}; expected {extra!r} in it, as task is '
        f'{config.task!r}'
      )
  channels, photometric = config.data.channels, config.data.photometric
  for key in ('mean', 'std'):
    if len(value := config.data[key]) != channels:
      raise UserError(f'data.{key} is {value!r}; expected {channels} numbers (data.channels)')
  if channels != 3 and photometric:
    raise UserError(f'data.photometric is {photometric}; expected 0, as data.channels is not 3')
  batch, parts = config.data.batch_size, config.train.accumulation
  if batch % parts:
    raise UserError(f'data.batch_size {batch} is no multiple of train.accumulation {parts}')
  for key in ('num_steps', 'log_every', 'eval_every', 'checkpoint_every'):
    if config.train[key] % (count := config.train.steps_per_call):
      raise UserError(
        f'train.{key} is {config.train[key]}; expected a multiple of train.steps_per_call {count}'
      )
  _check_inference(config.inference)


def _check_inference(inference: ml_collections.ConfigDict) -> None:
  if inference.crf not in CRFS:
    raise UserError(f'inference.crf is {inference.crf!r}{nearest(inference.crf, CRFS)}')
  for key, other in (('paint', 'repaint'), ('repaint', 'paint'), ('foreground', 'background')):
    if inference[key] and not inference[other]:
      raise UserError(f'inference.{key} is {inference[key]!r}; expected inference.{other} with it')


def for_training(config: ml_collections.ConfigDict, workdir: Path) -> ml_collections.ConfigDict:
  """The config, written into `workdir`, or found there already.

  Raises:
    UserError: `workdir` holds checkpoints of a run with another config, or cannot be written to.
  """
  check(config)
  path = workdir / 'config.json'
  if path.exists() and has_checkpoint(workdir):
    differences = _differences(read(path), config)
    if differences:
      raise UserError(
        f'{path} is of another run: {"; ".join(differences)}; expected the same config, or '
        'another --workdir'
      )
  try:
    atomic.write_bytes(path, json.dumps(config.to_dict(), indent=2).encode())
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be written to ({error})') from error
  return config


def for_inference(
  config: ml_collections.ConfigDict, overrides: dict, workdir: Path
) -> ml_collections.ConfigDict:
  """The config that `workdir` was trained with, changed by the command line's `overrides`.

  Raises:
    UserError: `workdir` was not trained in.
  """
  path = workdir / 'config.json'
  if not path.exists():
    raise UserError(f'{path} is missing; train first, or name a finished run with --workdir')
  known = flat(config.to_dict())
  saved = {key: value for key, value in flat(read(path)).items() if key not in OF_MACHINE}
  for key, value in (saved | overrides).items():
    if key not in known:
      raise UserError(f'{path}: unknown config key {key!r}{nearest(key, known)}')
    try:
      config.update_from_flattened_dict({key: value})
    except (TypeError, ValueError) as error:
      raise UserError(f'{path}: {key} is {value!r} ({error})') from error
  check(config)
  return config


def has_checkpoint(workdir: Path) -> bool:
  """Whether a step was saved in `workdir`, without opening it."""
  return any((workdir / 'checkpoints').glob('[0-9]*'))


def eval_splits(config: ml_collections.ConfigDict) -> list[str]:
  """The splits of `eval.splits`; the first is watched during training."""
  return [name.strip() for name in config.eval.splits.split(',')]


def read(path: Path) -> dict:
  """A saved config as nested dicts, its lists as the tuples that they were."""
  try:
    saved = json.loads(path.read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read as JSON ({error}); expected a config') from error
  if not isinstance(saved, dict):
    raise UserError(f'{path} holds {type(saved).__name__}; expected a config')
  return _tuples(saved)


def _tuples(value):
  if isinstance(value, dict):
    return {name: _tuples(v) for name, v in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def flat(values: dict, prefix: str = '') -> dict:
  """Nested dicts as one, its keys joined by dots."""
  joined = {}
  for name, value in values.items():
    joined |= (
      flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {f'{prefix}{name}': value}
    )
  return joined


def _differences(saved: dict, config: ml_collections.ConfigDict) -> list[str]:
  there, here = flat(saved), flat(_tuples(json.loads(json.dumps(config.to_dict()))))
  return [
    f'{key} is {there.get(key)!r} there and {here.get(key)!r} here'
    for key in sorted(there.keys() | here.keys())
    if there.get(key) != here.get(key) and key not in FREE
  ]
