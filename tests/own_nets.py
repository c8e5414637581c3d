"""Small networks as users of other libraries have them, with random weights: transformers, torchvision's
segmentation and detection, and OpenCLIP.
"""

from collections.abc import Callable
from typing import Any

import transformers as hf
from open_clip.model import CLIP
from torch import nn
from torchvision.models import detection, segmentation

VIT: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
)
SWIN: dict[str, Any] = dict(
    image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
)
STAGES: dict[str, Any] = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
PYRAMID: dict[str, Any] = dict(**STAGES, num_attention_heads=[1, 2, 2, 2])
TEXT: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
MAE: dict[str, Any] = dict(
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
)
DETECTION: dict[str, Any] = dict(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64)

TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    'vit': lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT, num_labels=5)),
    'deit': lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**VIT, num_labels=5)),
    'dinov2': lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**VIT, mlp_ratio=2, num_labels=5)),
    'dinov3': lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VIT)),
    'clip': lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT)),
    'siglip': lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT)),
    'swin': lambda: hf.SwinForImageClassification(hf.SwinConfig(**SWIN, num_labels=5)),
    'swinv2': lambda: hf.Swinv2ForImageClassification(hf.Swinv2Config(**SWIN, num_labels=5)),
    'beit': lambda: hf.BeitForImageClassification(
        hf.BeitConfig(**VIT, use_relative_position_bias=True, num_labels=5)
    ),
    'data2vec': lambda: hf.Data2VecVisionForImageClassification(
        hf.Data2VecVisionConfig(**VIT, use_relative_position_bias=True, num_labels=5)
    ),
    'vitmae': lambda: hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**VIT, **MAE)),
    'yolos': lambda: hf.YolosForObjectDetection(
        hf.YolosConfig(**VIT | dict(image_size=[32, 32]), num_detection_tokens=5, num_labels=3)
    ),
    'segformer': lambda: hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(**PYRAMID, decoder_hidden_size=16, num_labels=3)
    ),
    'pvt': lambda: hf.PvtForImageClassification(hf.PvtConfig(**PYRAMID, image_size=64, num_labels=3)),
    'hiera': lambda: hf.HieraForImageClassification(
        hf.HieraConfig(
            image_size=[64, 64], embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], num_labels=3
        )
    ),
    'levit': lambda: hf.LevitForImageClassification(
        hf.LevitConfig(
            image_size=64,
            hidden_sizes=[16, 24, 32],
            num_attention_heads=[1, 2, 2],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
            num_labels=3,
        )
    ),
    'mobilevitv2': lambda: hf.MobileViTV2ForImageClassification(
        hf.MobileViTV2Config(image_size=64, width_multiplier=0.5, num_labels=3)
    ),
    'swiftformer': lambda: hf.SwiftFormerForImageClassification(
        hf.SwiftFormerConfig(image_size=64, depths=[1, 1, 1, 1], embed_dims=[8, 16, 24, 32], num_labels=3)
    ),
    'convnext': lambda: hf.ConvNextForImageClassification(
        hf.ConvNextConfig(**STAGES, image_size=32, num_labels=5)
    ),
    'resnet': lambda: hf.ResNetForImageClassification(
        hf.ResNetConfig(**STAGES, embedding_size=8, layer_type='basic', num_labels=5)
    ),
}


def open_clip() -> nn.Module:
    """A whole CLIP of OpenCLIP, whose attentions are nn.MultiheadAttention."""
    vision = dict(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    text = dict(context_length=8, vocab_size=64, width=32, heads=2, layers=2)
    return CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)


TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    'fcn': lambda: segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3),
    'deeplabv3': lambda: segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    ),
    'lraspp': lambda: segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ),
    'fasterrcnn': lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**DETECTION),
    'retinanet': lambda: detection.retinanet_resnet50_fpn(**DETECTION),
}
