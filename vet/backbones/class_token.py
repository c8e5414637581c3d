"""Computes only the class token in the last block of timm's plain ViT, if only the class token is pooled.

Keys and values are of all tokens. The query, the projection and the MLP are of the class token. Features and
gradients equal those of the whole block, except for rounding. Only backbones/timm.py imports this file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from vet.core.reweight import forward_replaced


def pools_class_token(network: nn.Module) -> bool:
    """Whether the network is timm's own ViT, with timm's blocks and attention, pooled by the class token."""
    if (
        type(network) is not VisionTransformer
        or network.global_pool != 'token'
        or network.attn_pool is not None
    ):
        return False
    last = network.blocks[-1]
    return type(last) is Block and type(last.attn) is Attention and getattr(last.attn, 'gate', None) is None


def modules_of_class_token(network: Any) -> list[nn.Module]:
    """The modules that see only the class token within `class_token_only`, or that separate it from the
    others.
    """
    return [network.blocks, *network.blocks[-1].modules(), *network.norm.modules()]


@contextmanager
def class_token_only(network: Any) -> Iterator[None]:
    """Within this context, the last block of the network gives (B, 1, C), its class token.

    The context has no effect if `pools_class_token` is no longer true for the network, or if the block or its
    attention has another forward.
    """
    last = network.blocks[-1]
    if not pools_class_token(network) or any('forward' in module.__dict__ for module in (last, last.attn)):
        yield
        return
    with (
        forward_replaced(last, partial(_block, last)),
        forward_replaced(last.attn, partial(_attention, last.attn)),
    ):
        yield


def _block(block: Any, x_BNC: torch.Tensor) -> torch.Tensor:
    """timm's Block.forward, with residuals of the class token"""
    y_B1C = x_BNC[:, :1] + block.drop_path1(block.ls1(block.attn(block.norm1(x_BNC))))
    return y_B1C + block.drop_path2(block.ls2(block.mlp(block.norm2(y_B1C))))


def _attention(attention: Any, x_BNC: torch.Tensor) -> torch.Tensor:
    """timm's Attention.forward, with one query: softmax(q_1 K^T / sqrt(d)) V in each head"""
    q, k, v = attention.qkv(x_BNC).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(
        attention.q_norm(q[:, :, :1]),
        attention.k_norm(k),
        v,
        dropout_p=attention.attn_drop.p if attention.training else 0.0,
    )
    return attention.proj_drop(attention.proj(attention.norm(y.transpose(1, 2).flatten(2))))
