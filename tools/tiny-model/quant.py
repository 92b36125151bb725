"""Number formats as training sees them: FP8 e4m3 with power-of-two scales, straight-through gradients.

A value that went through e4m3 and a power-of-two scale is exact in bf16, so a bf16 matrix product of two
fake-quantised operands is the FP8 product with f32 accumulation.
"""
import torch


def pow2_ceil(s):
    """2^ceil(log2 s), exactly, for positive normal f32 s."""
    return ((s.view(torch.int32) + 0x7FFFFF) & ~0x7FFFFF).view(torch.float32)


def e4m3(x):
    return x.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float()


def fake_act(x):
    """AQ_128 along the last axis (ue8m0 mode), straight through."""
    f = x.float()
    g = f.unflatten(-1, (-1, 128))
    s = pow2_ceil(g.detach().abs().amax(-1, keepdim=True).clamp_min(1e-4) * (1 / 448))
    q = (e4m3(g / s) * s).flatten(-2)
    return f + (q - f).detach()


def weight_scale(w):
    """Power-of-two scale of each 128x128 block of w [out, in], f32 [ceil(out/128), ceil(in/128)]."""
    rows, cols = w.shape
    pad = torch.nn.functional.pad(w.float(), (0, -cols % 128, 0, -rows % 128))
    amax = pad.abs().unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).amax((1, 3))
    return pow2_ceil(amax.clamp_min(1e-4) * (1 / 448))


def expand_scale(s, shape):
    return s.repeat_interleave(128, 0).repeat_interleave(128, 1)[:shape[0], :shape[1]]


def fake_weight(w):
    """e4m3 with 128x128 scales, straight through."""
    s = expand_scale(weight_scale(w.detach()), w.shape)
    q = e4m3(w.detach() / s) * s
    return w + (q - w.detach())
