"""Cayley's transform: rotations from skew-symmetric matrices. OFT and BOFT train such matrices."""

import torch


def rotations_of(Q: torch.Tensor) -> torch.Tensor:
    """(I - Q) (I + Q)^-1 for skew-symmetric matrices Q (…, b, b), in the type of Q.

    Computed in float32 at least, because torch solves no equations in bf16 and fp16.
    """
    exact = Q.to(torch.promote_types(Q.dtype, torch.float32))
    one = torch.eye(Q.shape[-1], dtype=exact.dtype, device=Q.device)
    return torch.linalg.solve(one + exact, one - exact, left=False).to(Q.dtype)
