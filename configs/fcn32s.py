"""FCN-32s (Long et al. 2015, https://arxiv.org/abs/1411.4038), with batch norm, from scratch.

    ./run.sh --config=configs/fcn32s.py                                # generated scenes, on a CPU
    ./run.sh --config=configs/fcn32s.py:camvid --config.data.dir=PATH  # full size, for a GPU
    ./run.sh --config=configs/fcn32s.py:camvid --config.data.dir=PATH \
        --config.dtype=float32 --config.model.width=16 --config.model.fc_features=256 \
        --config.model.dropout=0.0 --config.data.image_scale=0.5 \
        '--config.data.crop_size=(176,240)' --config.optimizer.learning_rate=2e-3 \
        --config.optimizer.warmup_steps=30 --config.train.num_steps=2000  # small, on a CPU

The paper starts from VGG16 trained on ImageNet, without norm (`--config.model.norm=none`), and
trains by SGD. The generated scenes are enlarged: a score stands for 32 x 32 pixels, and half of
their objects are smaller.

On the generated scenes: mIoU 0.71 on val, 6 minutes on two CPU cores.
"""

from configs import common


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'fcn32s'
  config.model.name = 'fcn'
  config.model.backbone = 'vgg16'  # vgg16 | alexnet
  config.model.head = '32s'  # heatmap | 32s | 16s | 8s; AlexNet has the first two
  config.model.width = 16
  config.model.fc_features = 256  # of fc6 and fc7
  config.model.dropout = 0.0  # after fc6 and fc7
  config.model.norm = 'batch'  # batch | group | none
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 30
  if dataset == 'shapes':
    config.model.width = 8
    config.data.image_scale = 4.0
    config.data.crop_size = (256, 256)
    config.eval.batch_size = 8
    config.train.num_steps = 400
    config.train.eval_every = 200
    config.train.checkpoint_every = 200
  elif dataset != 'folder':
    config.dtype = 'bfloat16'
    config.model.width = 64
    config.model.fc_features = 4096
    config.model.dropout = 0.5
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.train.num_steps = 6000 if dataset == 'camvid' else 20000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
  return config
