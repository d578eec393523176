"""DeepLab v3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611).

    ./run.sh --config=configs/deeplab_v3plus.py                                # on a CPU
    ./run.sh --config=configs/deeplab_v3plus.py:camvid --config.data.dir=PATH \
        --config.model.pretrained=PATH  # MobileNetV2, for a GPU
    ./run.sh --config=configs/deeplab_v3plus.py:voc2012 --config.data.dir=PATH \
        --config.model.pretrained=PATH  # the paper's recipe, for several GPUs

Without `model.pretrained` they start from scratch. On VOC, Cityscapes and ADE20K the net is the
paper's, on Xception-65, with the authors' crops, batches and schedule; VOC's split is `train_aug`,
with the masks of SBD (without them: `--config.train.split=train`).

Elsewhere it is on MobileNetV2, with TensorFlow's padding and colours from -1 to 1, which the
authors' ImageNet weights were trained with; torchvision's have its own:
`--config.model.padding=symmetric '--config.data.mean=(0.485,0.456,0.406)'
'--config.data.std=(0.229,0.224,0.225)'`. A backbone that has learned already may learn slower than
the head, `"--config.optimizer.groups=(('^backbone/',0.1,1.0),)"`, or with frozen batch norm,
`--config.model.frozen_backbone_norm=True`. On CamVid, a smaller one reaches an mIoU of 0.59 on test
in 45 minutes on two CPU cores, from ImageNet's weights (`experiments/pretraining.py`).

On the generated scenes: mIoU 0.76 on val, 8 minutes on one CPU core.
"""

from configs import common, deeplab_v3


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'deeplab_v3plus'
  config.model.name = 'deeplab_v3plus'
  config.model.backbone = 'mobilenet_v2'  # any of seg_jax.models.backbones.BACKBONES
  config.model.backbone_width = 1.0  # times the backbone's channels
  config.model.output_stride = 16  # 4 | 8 | 16 | 32
  config.model.atrous_rates = (6, 12, 18)  # at output stride 16; doubled at 8
  config.model.features = 256  # of ASPP and decoder
  config.model.low_features = 48  # that the features of stride 4 are narrowed to
  config.model.separable = True  # the 3x3 convolutions of ASPP and decoder
  config.model.dropout = 0.1  # behind ASPP
  config.model.padding = 'same'  # MobileNetV2's: symmetric | same, TensorFlow's
  config.model.frozen_backbone_norm = False
  config.model.norm = 'batch'  # batch | frozen_batch | group | none
  config.data.mean = config.data.std = (0.5, 0.5, 0.5)  # as the authors' MobileNetV2 and Xception
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 30
  if dataset == 'shapes':
    config.model.backbone = 'resnet18'
    config.model.backbone_width = 0.5
    config.model.padding = 'symmetric'
    config.model.output_stride = 8
    config.model.atrous_rates = (1, 2, 3)  # as much of 96 pixels as 6, 12, 18 are of 513
    config.model.features = 64
    config.model.low_features = 16
    config.train.num_steps = 900
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
  elif dataset in deeplab_v3.RECIPES:
    config.model.backbone = 'xception65'
    config.model.padding = 'symmetric'
    deeplab_v3.papers_recipe(config, dataset, weight_decay=4e-5)
  elif dataset != 'folder':
    config.dtype = 'bfloat16'
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.train.num_steps = 6000 if dataset == 'camvid' else 30000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
  return config
