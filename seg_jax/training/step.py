"""The state of a run, and the pure function that takes it one step on."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from seg_jax.ops import devices
from seg_jax.ops.convolution import CONVOLUTION


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes; all of it is in the checkpoint."""

  step: jax.Array  # int32, steps done
  params: Any
  model_state: dict  # the model's other collections, such as batch statistics
  opt_state: Any
  ema_params: Any  # an average of `params`; an empty dict where it is off

  @property
  def variables(self) -> dict:
    """What evaluation and prediction use."""
    return {'params': self.ema_params or self.params} | self.model_state


def init_state(task, optimizer: optax.GradientTransformation, ema_decay: float, key, shapes):
  """A fresh state for batches of `shapes`.

  Under `jax.jit` the batch of zeros and the model's outputs are never computed.
  """
  batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  model_state = dict(task.init(key, batch))
  params = model_state.pop('params')
  ema_params = jax.tree.map(jnp.copy, params) if ema_decay > 0 else {}
  return TrainState(
    jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params), ema_params
  )


def make_step(
  task,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  accumulation: int = 1,
  ema_decay: float = 0.0,
  recompute: bool = False,
) -> Callable:
  """`step(state, batch, key) -> (state, logs)`; `key` is the run's, the same at every step.

  With `accumulation` k the batch is taken in k interleaved parts whose losses are joined by the
  weights of their pixels: for cross entropy and focal loss that is the whole batch's gradient.
  Batch norm, hard-pixel mining, Dice and Lovász see the parts. Unrolled: inside a loop XLA's CPU
  back end loses its fast convolution gradients. With `recompute`, what lies between convolutions is
  not kept for the backward pass but computed again.
  """

  def gradients(params, model_state, batch, key):
    def objective(params):
      return task.loss({'params': params} | model_state, batch, key, train=True)

    if recompute:
      objective = recomputing(objective)
    (loss, (model_state, logs)), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return {'loss': loss} | logs, devices.mean(grads), model_state

  def step(state: TrainState, batch: dict, key: jax.Array):
    key = jax.random.fold_in(key, state.step)
    model_state, parts = state.model_state, []
    for i in range(accumulation):
      part = {name: array[i::accumulation] for name, array in batch.items()}
      logs, grads, model_state = gradients(
        state.params, model_state, part, jax.random.fold_in(key, i)
      )
      parts.append((logs.pop('weight'), (logs, grads)))
    logs, grads = _weighted_mean(parts)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_decay > 0:
      # The decay grows with the steps done, so that the first weights are soon forgotten.
      done = state.step.astype(jnp.float32)
      decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
      ema_params = optax.incremental_update(params, ema_params, 1.0 - decay)
    logs |= {'gradient_norm': optax.tree.norm(grads), 'learning_rate': schedule(state.step)}
    return TrainState(state.step + 1, params, model_state, opt_state, ema_params), logs

  return step


def recomputing(objective: Callable) -> Callable:
  """`objective`, whose gradient keeps what convolutions give, and computes the rest again.

  On a CPU XLA joins the two computations again, and nothing is saved.
  """
  policy = jax.checkpoint_policies.save_only_these_names(CONVOLUTION)
  return jax.checkpoint(objective, policy=policy)


def in_calls(step: Callable, count: int) -> Callable:
  """`count` steps in one call: its batches, and its logs, have a first axis of that length.

  Saves a small model the time that a call takes. Unrolled on a CPU, as `make_step` is.
  """

  def unrolled(state: TrainState, batches: dict, key: jax.Array):
    logs = []
    for i in range(count):
      state, of_step = step(state, {name: x[i] for name, x in batches.items()}, key)
      logs.append(of_step)
    return state, jax.tree.map(lambda *xs: jnp.stack(xs), *logs)

  def scanned(state: TrainState, batches: dict, key: jax.Array):
    return jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)

  return unrolled if count == 1 or jax.default_backend() == 'cpu' else scanned


def _weighted_mean(parts):
  """The mean of trees `[(weight, tree), ...]`; one part, or no weight at all, as it is."""
  if len(parts) == 1:
    return parts[0][1]
  total = sum(weight for weight, _ in parts)
  shares = [jnp.where(total > 0, w / jnp.maximum(total, 1e-12), 1 / len(parts)) for w, _ in parts]
  trees = [tree for _, tree in parts]
  scaled = [optax.tree.scale(share, tree) for share, tree in zip(shares, trees, strict=True)]
  return jax.tree.map(lambda *xs: sum(xs), *scaled)
