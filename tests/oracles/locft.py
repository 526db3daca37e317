"""The training of LocFT-BF (arXiv:2509.22072 and its published code), literally, in float64.

Every loss is a pass of one row through the whole model, without padding, and its full logits; Adam is written out.
Nothing is shared with the product.
"""

import torch


def loss(model, prompt, target):
    """The mean over the target's tokens of -log p."""
    log_p = torch.log_softmax(model(input_ids=torch.tensor([prompt + target])).logits[0].double(), dim=-1)
    return -sum(log_p[len(prompt) + i - 1, token] for i, token in enumerate(target)) / len(target)


def routed_by_hand(module, downs, up_biases, key, down_biases):
    """The forward pass of a module of routed experts, a token and an expert at a time, each down map a matrix of its
    own: sum_e g_e (W_e k_e + b_e), with g_e = 0 where a token does not take the expert.
    ``key(inner)`` is k of what comes in through an up map."""

    def forward(hidden, index, weights):
        rows = []
        for x, taken, gates in zip(hidden.reshape(-1, hidden.shape[-1]), index, weights, strict=True):
            g = torch.zeros(len(downs), dtype=x.dtype).index_add(0, taken, gates.to(x.dtype))
            out = torch.zeros_like(x)
            for e in range(len(downs)):
                up = module.gate_up_proj[e]
                inner = (up if up.shape[1] == len(x) else up.T) @ x
                if up_biases is not None:
                    inner = inner + up_biases[e]
                put_out = downs[e] @ key(inner)
                if down_biases is not None:
                    put_out = put_out + down_biases[e]
                out = out + g[e] * put_out
            rows.append(out)
        return torch.stack(rows).reshape(hidden.shape)

    return forward


def train(model, data, theta, orders, size, rate, threshold):
    """``data`` is a list of (prompt, target) ids; ``orders`` has the order of each epoch. Returns the mean loss of each
    epoch that was run, and for each batch whether it made a step."""
    m, v = [torch.zeros_like(p) for p in theta], [torch.zeros_like(p) for p in theta]
    t, epochs, stepped = 0, [], []
    for order in orders:
        total, count = 0.0, 0
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            mean = sum(loss(model, *data[row]) for row in rows) / len(rows)
            total, count = total + float(mean.detach()) * len(rows), count + len(rows)
            stepped.append(float(mean.detach()) >= threshold)
            if not stepped[-1]:
                continue
            t += 1
            for i, (p, g) in enumerate(zip(theta, torch.autograd.grad(mean, theta), strict=True)):
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g * g
                p.data -= rate * (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8)
        epochs.append(total / count)
        if epochs[-1] < threshold:
            break
    return epochs, stepped
