"""SegNet (Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561).

    ./run.sh --config=configs/segnet.py                                # generated scenes, on a CPU
    ./run.sh --config=configs/segnet.py:camvid --config.data.dir=PATH  # full size, for a GPU
    ./run.sh --config=configs/segnet.py:camvid --config.data.dir=PATH \
        --config.dtype=float32 --config.model.width=16 --config.data.image_scale=0.5 \
        '--config.data.crop_size=(176,240)' --config.optimizer.learning_rate=4e-3 \
        --config.train.num_steps=1200                                  # small, on a CPU

The paper starts from VGG16 trained on ImageNet, weighs classes by
`--config.loss.class_weights=median_frequency`, and takes SGD, `--config.optimizer.name=sgd
--config.optimizer.learning_rate=0.1 --config.optimizer.schedule=constant`.

On the generated scenes: mIoU 0.74 on val, 4 minutes on two CPU cores; on CamVid, by the third
command, 0.36 on test, 30 minutes.
"""

from configs import common


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'segnet'
  config.model.name = 'segnet'
  config.model.width = 16
  config.model.norm = 'batch'  # batch | group | none
  config.model.upsampling = 'max_unpool'  # max_unpool|nearest|bed_of_nails|bilinear|transposed
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 30
  if dataset == 'shapes':
    config.train.num_steps = 900
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
  elif dataset == 'camvid':
    config.dtype = 'bfloat16'
    config.model.width = 64
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 6000
  elif dataset != 'folder':
    config.model.width = 32
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 20000
    config.train.eval_every = 2000
  return config
