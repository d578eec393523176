"""The learning rate over time, and the update that it scales."""

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
  """
  decay = config.weight_decay
  if config.name == 'adamw':
    rule = optax.adamw(schedule, weight_decay=decay, mask=_kernels)
  elif config.name in ('sgd', 'rmsprop'):
    scale = (
      optax.sgd(schedule, config.momentum)
      if config.name == 'sgd'
      else optax.rmsprop(schedule, decay=0.9, momentum=config.momentum)
    )
    rule = optax.chain(optax.add_decayed_weights(decay, _kernels), scale)
  else:
    hint = errors.nearest(config.name, OPTIMIZERS)
    raise errors.UserError(f'optimizer.name is {config.name!r}{hint}')
  if config.clip_norm > 0:
    rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
  return rule


def _kernels(params):
  """True for the leaves that weight decay touches."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)
