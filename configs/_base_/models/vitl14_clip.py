"""ViT-L/14, CLIP's image encoder (OpenAI)."""

model = dict(
    backbone=dict(type='timm', name='vit_large_patch14_clip_quickgelu_224.openai'), head=dict(type='Linear')
)
