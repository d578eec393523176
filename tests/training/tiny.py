"""A run so small that a test can have several."""

from configs import unet


def config(**overrides):
  """U-Net of width 2 on scenes of 16 x 16, six steps; `overrides` by dotted key."""
  config = unet.get_config()
  config.data.update({'shapes_size': (16, 16), 'crop_size': (16, 16), 'batch_size': 4})
  config.model.update({'width': 2, 'depth': 1})
  config.optimizer.warmup_steps = 0
  config.train.update({'num_steps': 6, 'log_every': 1, 'eval_every': 3, 'checkpoint_every': 2})
  config.eval.update({'batch_size': 64, 'size_multiple': 1, 'num_pictures': 2})
  config.update_from_flattened_dict({key.replace('__', '.'): v for key, v in overrides.items()})
  return config
