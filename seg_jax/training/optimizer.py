"""The learning rate over time, and the update that it scales."""

import functools
import re

import jax
import ml_collections
import optax

from seg_jax import errors

SCHEDULES = ('poly', 'cosine', 'step', 'constant')
OPTIMIZERS = ('sgd', 'adamw', 'rmsprop')


def make_schedule(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
  """Step -> learning rate: linear warm-up from 0, then the named decay over what is left.

  'poly' is `(1 - t) ** poly_power` (Liu et al. 2015, ParseNet), 'cosine' half a period down to 0
  (Loshchilov and Hutter 2017), 'step' a factor at each of `step_boundaries`, shares of `num_steps`.
  """
  rate, warmup = config.learning_rate, config.warmup_steps
  if not 0 <= warmup < num_steps:
    raise errors.UserError(
      f'optimizer.warmup_steps is {warmup}; expected 0 to train.num_steps - 1 = {num_steps - 1}'
    )
  rest = num_steps - warmup
  if config.schedule == 'poly':
    decay = optax.polynomial_schedule(rate, 0.0, config.poly_power, rest)
  elif config.schedule == 'cosine':
    decay = optax.cosine_decay_schedule(rate, rest)
  elif config.schedule == 'step':
    boundaries = {int(b * num_steps) - warmup: config.step_factor for b in config.step_boundaries}
    decay = optax.piecewise_constant_schedule(rate, boundaries)
  elif config.schedule == 'constant':
    decay = optax.constant_schedule(rate)
  else:
    hint = errors.nearest(config.schedule, SCHEDULES)
    raise errors.UserError(f'optimizer.schedule is {config.schedule!r}{hint}')
  if not warmup:
    return decay
  return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), decay], [warmup])


def make_optimizer(
  config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Gradient clipping, weight decay on kernels alone, and the named rule.

  The decay is added to the gradient for SGD and RMSprop (L2, as in their papers) and decoupled from
  it for AdamW.

  Each of `groups` is (pattern, rate, decay): parameters whose path, such as
  'backbone/layer1_0/conv1/kernel', the regular expression `pattern` is found in have `rate` times
  the learning rate and `decay` times the weight decay. The last that matches counts; a rate of 0
  freezes, which takes no memory here and leaves these gradients out of the clipping.

    (('^(?!backbone/)', 10.0, 1.0),)  # all but the backbone learns ten times as fast
    (('^backbone/(conv1|norm1|layer[12]_)', 0.0, 0.0),)  # a ResNet's first stages stay as they are
    (('depthwise', 1.0, 0.0),)  # depthwise kernels do not decay

  Raises:
    UserError: an unknown rule or, when the parameters are known, a pattern that is in none of them.
  """
  groups = (('', 1.0, 1.0), *config.groups)
  rules = [_rule(config, schedule, rate, decay) for _, rate, decay in groups]
  clipping = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else None
  if len(groups) == 1:
    return optax.chain(clipping, rules[0]) if clipping else rules[0]
  labels = functools.partial(_labels, [pattern for pattern, *_ in groups])

  def apart(rules):
    return optax.partition({str(i): rule for i, rule in enumerate(rules)}, labels)

  if not clipping:
    return apart(rules)
  kept = [optax.identity() if rate else optax.set_to_zero() for _, rate, _ in groups]
  return optax.chain(apart(kept), clipping, apart(rules))


def _rule(config, schedule, rate, decay):
  """The update of a group, with `rate` times the learning rate and `decay` times the decay."""
  if config.name not in OPTIMIZERS:
    hint = errors.nearest(config.name, OPTIMIZERS)
    raise errors.UserError(f'optimizer.name is {config.name!r}{hint}')
  if rate == 0:
    return optax.set_to_zero()
  decay *= config.weight_decay

  def scaled(step):
    return rate * schedule(step)

  if config.name == 'adamw':
    return optax.adamw(scaled, weight_decay=decay, mask=_kernels)
  scale = (
    optax.sgd(scaled, config.momentum)
    if config.name == 'sgd'
    else optax.rmsprop(scaled, decay=0.9, momentum=config.momentum)
  )
  return optax.chain(optax.add_decayed_weights(decay, _kernels), scale)


def _labels(patterns, params):
  """For each parameter, which of `patterns` is the last that is found in its path, as a string."""
  found = set()

  def label(path, _):
    matching = [i for i, pattern in enumerate(patterns) if re.search(pattern, _name(path))]
    found.update(matching)
    return str(matching[-1])

  labels = jax.tree_util.tree_map_with_path(label, params)
  for i, pattern in enumerate(patterns):
    if i not in found:
      path, _ = jax.tree_util.tree_leaves_with_path(params)[0]
      raise errors.UserError(
        f'optimizer.groups: {pattern!r} is found in no path of a parameter; they are such as '
        f'{_name(path)}'
      )
  return labels


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _kernels(params):
  """True for the leaves that weight decay touches."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)
