"""CRF-RNN (Zheng et al. 2015, https://arxiv.org/abs/1502.03240): a dense CRF on FCN-8s, as one net.

From a finished FCN-8s, as in the paper, or at once:

    ./run.sh --config=configs/fcn8s.py                             # generated scenes, on a CPU
    ./run.sh --config=configs/crf_rnn.py --config.model.pretrained=runs/fcn8s-shapes \
        --config.optimizer.learning_rate=2e-4 --config.train.num_steps=100 \
        --config.train.eval_every=50 --config.train.checkpoint_every=50
    ./run.sh --config=configs/crf_rnn.py                           # at once
    ./run.sh --config=configs/crf_rnn.py:camvid --config.data.dir=PATH  # full size, for a GPU

The first two: mIoU 0.80, then 0.84 on val, the second in 10 minutes on one CPU core.

Other systems: `on(config)` puts the CRF behind that of another config. The window's filter
(`--config.model.filter=window`) is the quickest on small pictures.
"""

import ml_collections

from configs import fcn8s


def get_config(dataset: str = 'shapes'):
  config = on(fcn8s.get_config(dataset))
  if dataset == 'shapes':
    config.data.batch_size = 4
  elif dataset != 'folder':
    config.model.filter = 'exact'  # on a CPU: lattice
  return config


def on(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """`config`, with a CRF behind its system."""
  system = config.model.to_dict()
  config.name = 'crf_rnn'
  config.model = model = ml_collections.ConfigDict()
  model.name = 'crf_rnn'
  model.pretrained = system.pop('pretrained')
  model.filter = 'lattice'  # lattice | exact | window; they share all weights
  model.radius = 3  # of the window, in pixels
  model.theta_alpha = 80.0  # the kernels' deviations: of pixels,
  model.theta_beta = 13.0  # and of 255 values of a colour, in the appearance kernel,
  model.theta_gamma = 3.0  # of pixels in the smoothness kernel
  model.appearance = 10.0  # the kernels' weights at first
  model.smoothness = 3.0
  model.train_iterations = 5
  model.iterations = 10
  model.system = system  # what gives the unaries, with its own fields
  return config
