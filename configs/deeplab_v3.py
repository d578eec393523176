"""DeepLab v3 (Chen et al. 2017, https://arxiv.org/abs/1706.05587).

    ./run.sh --config=configs/deeplab_v3.py                                # on a CPU
    ./run.sh --config=configs/deeplab_v3.py:camvid --config.data.dir=PATH  # from scratch, for a GPU
    ./run.sh --config=configs/deeplab_v3.py:voc2012 --config.data.dir=PATH \
        --config.model.pretrained=PATH  # the paper's recipe, for several GPUs

The last starts from a ResNet-101 trained on ImageNet, and has the authors' crops, batches, schedule
and, without the auxiliary head, their net; on `train_aug`, VOC with the masks of SBD (without them:
`--config.train.split=train`). Cityscapes and ADE20K are theirs likewise, where ADE20K's length is
that of DeepLab v3+. The paper goes on with frozen batch norm at output stride 8:

    ./run.sh --config=configs/deeplab_v3.py:voc2012 --config.data.dir=PATH --workdir=runs/second \
        --config.model.pretrained=runs/deeplab_v3-voc2012 --config.train.split=trainval \
        --config.model.norm=frozen_batch --config.model.output_stride=8 \
        --config.optimizer.learning_rate=0.001

and evaluates at 8 in any case: `--mode=eval --config.model.output_stride=8`. torchvision's
`deeplabv3_resnet50` is `--config.model.backbone=resnet50 '--config.model.multi_grid=(1,)'
--config.model.output_stride=8 --config.model.auxiliary=True`.

On the generated scenes: mIoU 0.72 on val, 10 minutes on one CPU core.
"""

from configs import common

RECIPES = {'voc2012': (513, 30000), 'cityscapes': (769, 90000), 'ade20k': (513, 150000)}


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'deeplab_v3'
  config.model.name = 'deeplab_v3'
  config.model.backbone = 'resnet50'  # any of seg_jax.models.backbones.BACKBONES
  config.model.backbone_width = 1.0  # times the backbone's channels
  config.model.output_stride = 8  # 4 | 8 | 16 | 32; in cascade also 64 | 128 | 256
  config.model.head = 'aspp'  # aspp | cascade
  config.model.atrous_rates = (6, 12, 18)  # at output stride 16; doubled at 8
  config.model.multi_grid = (1,)  # ResNets' units of block 4 and later
  config.model.features = 256  # of ASPP and what follows
  config.model.dropout = 0.5  # behind ASPP
  config.model.auxiliary = True  # a second head on the features of stride 16
  config.model.padding = 'symmetric'  # MobileNetV2's: symmetric | same, TensorFlow's
  config.model.frozen_backbone_norm = False
  config.model.norm = 'batch'  # batch | frozen_batch | group | none
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 30
  if dataset == 'shapes':
    config.model.backbone = 'resnet18'
    config.model.backbone_width = 0.5
    config.model.atrous_rates = (1, 2, 3)  # as much of 96 pixels as 6, 12, 18 are of 513
    config.model.features = 64
    config.model.dropout = 0.1
    config.train.num_steps = 900
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
  elif dataset in RECIPES:
    config.model.backbone = 'resnet101'
    config.model.output_stride = 16
    config.model.multi_grid = (1, 2, 4)
    config.model.auxiliary = False
    papers_recipe(config, dataset, weight_decay=1e-4)
  elif dataset != 'folder':
    config.dtype = 'bfloat16'
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.train.num_steps = 4000 if dataset == 'camvid' else 30000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
  return config


def papers_recipe(config, dataset: str, weight_decay: float) -> None:
  """How the authors of DeepLab v3 and v3+ train on one of `RECIPES` (section 4.1), in bfloat16."""
  crop, num_steps = RECIPES[dataset]
  config.dtype = 'bfloat16'
  config.data.batch_size = 16
  config.data.crop_size = (crop, crop)
  config.data.scale_range = (0.5, 2.0)
  config.data.photometric = 0.0
  config.eval.batch_size = 8
  if dataset == 'voc2012':
    config.train.split = 'train_aug'
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.007
  config.optimizer.warmup_steps = 0
  config.optimizer.schedule = 'poly'
  config.optimizer.weight_decay = weight_decay
  config.train.num_steps = num_steps
  config.train.eval_every = 5000
  config.train.checkpoint_every = 1000
