"""Keys and values of ROME, MEMIT and AlphaEdit, one request at a time, by whole passes of the model.

Every text is tokenised whole, and every loss is a pass through the whole model, one text at a time, without padding or
cache, with full logits; Adam is torch's. Nothing is shared with the product.
"""

import torch


def last_token(tokenizer, prefix, subject):
    """Where the subject ends: as many tokens as the text up to there has."""
    return len(tokenizer(prefix + subject).input_ids) - 1


def texts(prompt, subject, contexts):
    """(what stands before the subject, what stands behind it) in every context."""
    before, after = prompt.split(subject)
    return [tuple(part for part in context.format(f"{before}\0{after}").split("\0")) for context in contexts]


def key(model, tokenizer, prompt, subject, contexts, down):
    """k: the mean of the bare prompt's key and of the mean key over the other contexts."""
    keys = []
    for before, after in texts(prompt, subject, contexts):
        seen = []
        hook = down.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(torch.tensor([tokenizer(before + subject + after).input_ids]))
        hook.remove()
        keys.append(seen[0][0, last_token(tokenizer, before, subject)])
    kinds = [torch.stack(kind).mean(0) for kind in (keys[:1], keys[1:]) if kind]
    return torch.stack(kinds).mean(0)


def value(
    model, tokenizer, prompt, subject, target, contexts, block, *,
    steps, lr, weight_decay, clamp, kl_factor, stop_loss=0.05, early=None, stop_most_probable=0,
):  # fmt: skip
    """v* = h + delta, with h, the last loss, the updates made, and the target's probability in the bare prompt.

    It ends too at the evaluation ``stop_most_probable`` of those with the whole target most probable in every context.
    ``early`` is (block, norm, head) to read the target from the output of an earlier block.
    """
    target_ids = tokenizer(" " + target, add_special_tokens=False).input_ids
    rewriting = []
    for before, after in texts(prompt, subject, contexts):
        ids = tokenizer(before + subject + after).input_ids + target_ids[:-1]
        rewriting.append((ids, last_token(tokenizer, before, subject)))
    kl_ids, kl_place = tokenizer(subject + " is a").input_ids, last_token(tokenizer, "", subject)

    def run(ids, place, delta):
        """(logits, hidden states of the early block, h)"""
        kept = {}

        def edit(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            kept["h"] = hidden[0, place].detach().clone()
            moved = hidden.clone()
            moved[0, place] = moved[0, place] + delta
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        def read(module, args, output):
            kept["early"] = output[0] if isinstance(output, tuple) else output

        hooks = [block.register_forward_hook(edit)]
        if early is not None:
            hooks.append(early[0].register_forward_hook(read))
        logits = model(torch.tensor([ids])).logits[0]
        for hook in hooks:
            hook.remove()
        return logits, kept.get("early"), kept["h"]

    h = run(*rewriting[0], 0)[2]
    delta = torch.zeros_like(h, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    kl_start, times = None, 0
    for step in range(steps):
        nll, said = [], True
        for number, (ids, place) in enumerate(rewriting):
            logits, hidden, _ = run(ids, place, delta)
            if number == 0:
                log_p = torch.log_softmax(logits, -1)[len(ids) - len(target_ids) :]
                probability = sum(log_p[i, token] for i, token in enumerate(target_ids)).exp().item()
            if early is not None:
                logits = early[2](early[1](hidden))[0]
            log_p = torch.log_softmax(logits, -1)[len(ids) - len(target_ids) :]
            said = said and log_p.argmax(-1)[: len(target_ids)].tolist() == target_ids
            nll.append(-sum(log_p[i, token] for i, token in enumerate(target_ids)) / len(target_ids))
        log_q = torch.log_softmax(run(kl_ids, kl_place, delta)[0][kl_place], -1)
        kl_start = log_q.detach() if kl_start is None else kl_start
        kl = (log_q.exp() * (log_q - kl_start)).sum()
        loss = sum(nll) / len(nll) + kl_factor * kl + weight_decay * torch.norm(delta) / torch.norm(h) ** 2
        times += said
        if loss < stop_loss or (said and times == stop_most_probable) or step == steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if delta.norm() > clamp * h.norm():
                delta *= clamp * h.norm() / delta.norm()
    return (h + delta).detach(), h, loss.item(), step, probability
