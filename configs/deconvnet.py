"""DeconvNet (Noh et al. 2015, https://arxiv.org/abs/1505.04366), trained in one stage.

    ./run.sh --config=configs/deconvnet.py                                # on a CPU
    ./run.sh --config=configs/deconvnet.py:camvid --config.data.dir=PATH  # full size, for a GPU

The paper starts the encoder from VGG16 trained on ImageNet.

On the generated scenes: mIoU 0.71 on val, 7 minutes on two CPU cores.
"""

from configs import common


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'deconvnet'
  config.model.name = 'deconvnet'
  config.model.width = 16
  config.model.fc_features = 256
  config.model.fc_size = 3  # 96 / 32: as in the paper fc6 sees all of a picture
  config.model.norm = 'batch'  # batch | group | none
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 30
  if dataset == 'shapes':
    config.train.num_steps = 900
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
  elif dataset == 'camvid':
    config.dtype = 'bfloat16'
    config.model.width = 64
    config.model.fc_features = 4096
    config.model.fc_size = 7
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.train.num_steps = 6000
  elif dataset != 'folder':
    config.model.width = 32
    config.model.fc_features = 1024
    config.model.fc_size = 7
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.train.num_steps = 20000
    config.train.eval_every = 2000
  return config
