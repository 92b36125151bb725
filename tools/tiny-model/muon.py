"""Muon for the weight matrices (momentum, orthogonalised by Newton-Schulz), AdamW for everything else."""
import torch


def orthogonal(g):
    """Nearest semi-orthogonal matrices of a stack [n, rows, cols], roughly: five quintic iterations in bf16."""
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Updates have the root mean square of AdamW's (0.2), so that learning rate and decay mean the same."""

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        super().__init__(list(params), dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.shapes = {}
        for p in self.param_groups[0]["params"]:
            self.shapes.setdefault(tuple(p.shape), []).append(p)
        self.buffers = {s: torch.zeros(len(ps), *s, device=ps[0].device) for s, ps in self.shapes.items()}

    @torch.no_grad()
    def step(self):
        g = self.param_groups[0]
        for shape, params in self.shapes.items():
            grad, buf = torch.stack([p.grad for p in params]), self.buffers[shape]
            buf.lerp_(grad, 1 - g["momentum"])
            update = orthogonal(grad.lerp(buf, g["momentum"])).float() * (0.2 * max(shape) ** 0.5)
            torch._foreach_mul_(params, 1 - g["lr"] * g["weight_decay"])
            torch._foreach_add_(params, list(update.unbind(0)), alpha=-g["lr"])
