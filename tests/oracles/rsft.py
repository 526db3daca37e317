"""Algorithm 1 of papers/model-merging-for-knowledge-editing.md, line by line, in float64.

Every loss is a pass through the whole model, without cache or padding, and its full logits; AdamW is written out.
Nothing is shared with the product.
"""

import math
from dataclasses import dataclass, field

import torch


@dataclass
class Settings:
    epochs: int = 5
    steps: int = 6
    tau: float = 0.1
    rate: float = 5e-4
    optimizer: str = "adamw"
    reduction: str = "mean"
    decay: float = 0.0


@dataclass
class Adam:
    """Loshchilov & Hutter, 2019, Algorithm 2, decoupled decay; the rate is a cosine from its peak to zero."""

    total: int
    peak: float
    decay: float
    m: list = field(default_factory=list)
    v: list = field(default_factory=list)

    def step(self, theta, gradients, t):
        if not self.m:
            self.m = [torch.zeros_like(p) for p in theta]
            self.v = [torch.zeros_like(p) for p in theta]
        rate = self.peak * (1 + math.cos(math.pi * t / self.total)) / 2
        for i, (p, g) in enumerate(zip(theta, gradients, strict=True)):
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
            m_hat = self.m[i] / (1 - 0.9 ** (t + 1))
            v_hat = self.v[i] / (1 - 0.999 ** (t + 1))
            p.data -= rate * (m_hat / (v_hat.sqrt() + 1e-8) + self.decay * p.data)


def loss(model, question, answer, reduction):
    """L_n = -log P(a_n | q_n; theta), or its mean over the tokens of a_n."""
    log_p = torch.log_softmax(model(input_ids=torch.tensor([question + answer])).logits[0].double(), dim=-1)
    terms = [-log_p[len(question) + i - 1, token] for i, token in enumerate(answer)]
    return sum(terms) / (len(terms) if reduction == "mean" else 1)


def train(model, data, theta, s):
    """``data`` is a list of (q_n, a_n), each a list of ids. Returns, for each epoch and sample, the steps taken."""
    adam = Adam(total=s.epochs * len(data) * s.steps, peak=s.rate, decay=s.decay)
    taken = []
    t = 0
    for _ in range(s.epochs):  # line 3
        taken.append([])
        for question, answer in data:  # 4
            steps = 0
            for _ in range(s.steps):  # 5
                value = loss(model, question, answer, s.reduction)  # 6
                if value < s.tau:  # 7
                    break
                gradients = torch.autograd.grad(value, theta)
                if s.optimizer == "sgd":
                    for p, g in zip(theta, gradients, strict=True):
                        p.data -= s.rate * g  # 10
                else:
                    adam.step(theta, gradients, t)
                t += 1  # 11
                steps += 1
            taken[-1].append(steps)
    return taken
