"""What a testbed must show before anything is measured on it: that it knows its world, and that it can be edited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from corsa_plugins.model.batching import pad
from corsa_plugins.model.borrowing import eval_mode, frozen, hooked
from corsa_plugins.model.tokenization import encode_prompt, join
from corsa_plugins.testbed.facts import Fact
from corsa_plugins.testbed.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.testbed.build import Testbed


@dataclass(frozen=True)
class Encoded:
    """Prompts with their answers, right-padded.

    Attributes:
        tokens: (batch, length).
        targets: (batch, length), the token to follow each position; -100 everywhere but where an answer is asked.
    """

    tokens: torch.Tensor
    targets: torch.Tensor


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]) -> Encoded:
    """Tokenise each prompt with its answer behind it."""
    tokens, targets = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        before, after = join(tokenizer, prompt, answer)
        tokens.append(before + after)
        targets.append([-100] * (len(before) - 1) + after + [-100])
    padding: Any = tokenizer.pad_token_id
    return Encoded(pad(tokens, padding).ids, pad(targets, -100).ids)


def greedy_matches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    batch_size: int = 256,
) -> list[bool]:
    """For each prompt, whether greedy decoding gives exactly the tokens of the answer.

    One forward pass decides it: greedy decoding gives the answer if and only if every one of its tokens is the
    most likely one behind the prompt and the answer's earlier tokens.
    """
    matches: list[bool] = []
    with eval_mode(model):
        for start in range(0, len(prompts), batch_size):
            part = encode(tokenizer, prompts[start : start + batch_size], answers[start : start + batch_size])
            best = model(part.tokens).logits.argmax(-1)
            matches += ((best == part.targets) | (part.targets == -100)).all(-1).tolist()
    return matches


def knowledge(testbed: Testbed, facts: Sequence[Fact] | None = None) -> dict[str, float]:
    """Form -> share of the facts (default: all) that the model answers exactly, greedily, in that form."""
    world: World = testbed.world
    facts = world.facts if facts is None else facts
    pairs_by_form: dict[str, list[tuple[str, str]]] = {}
    for fact in facts:
        for form in world.forms(fact.relation):
            pairs_by_form.setdefault(form, []).append((world.prompts(fact, form), fact.answer))
    shares = {}
    for form, pairs in pairs_by_form.items():
        prompts, answers = zip(*pairs, strict=True)
        matches = greedy_matches(testbed.model, testbed.tokenizer, prompts, answers)
        shares[form] = sum(matches) / len(matches)
    return shares


@dataclass(frozen=True)
class Promise:
    """A share that a testbed must reach.

    Attributes:
        name: Of what.
        share: As it was measured, from 0 to 1.
        least: What it must be at least.
    """

    name: str
    share: float
    least: float

    @property
    def kept(self) -> bool:
        """Whether it is reached."""
        return self.share >= self.least


def check_testbed(testbed: Testbed, edits: int = 100) -> list[Promise]:
    """What a testbed promises, measured: that it knows its world in every form, and that it can be edited.

    Args:
        testbed: The testbed.
        edits: How many edits to try, or as many as there are people.
    """
    promises = [Promise(f"facts known, {form}", share, 0.99) for form, share in knowledge(testbed).items()]
    reach = value_reach(testbed, n=min(edits, len(testbed.world.people)), seed=0)
    return [*promises, Promise("edits reached by a vector at the last subject token", reach.reached, 0.9)]


@dataclass(frozen=True)
class ValueReach:
    """How far one vector at the last subject token carries an edit, over a sample of requests.

    Attributes:
        reached: share of the requests whose target has probability >= 0.5 (the product over its tokens) in the
            statement.
        question_answers: share of their questions answered with the target when the same vector is added there.
        relative_norm: median norm of the vector in units of the norm of the block's output it is added to.
    """

    reached: float
    question_answers: float
    relative_norm: float


def value_reach(
    testbed: Testbed, n: int = 100, seed: int = 0, layer: int = 0, steps: int = 100, clamp: float = 4.0
) -> ValueReach:
    """Look for a value vector for each of `n` edit requests, as ROME does, and see what the vectors achieve.

    For each request a vector delta (hidden,) is added to the output of the FFN of block `layer` at the last subject
    token of the statement, and found by `steps` steps of Adam on the mean negative log-likelihood of the target's
    tokens; its norm is kept to `clamp` times that of the block's output. The requests are optimised side by side.
    """
    model, tokenizer = testbed.model, testbed.tokenizer
    requests = testbed.world.edit_rounds(n_rounds=1, size=n, seed=seed, untouched=0).rounds[0]
    statements = [request.prompt for request in requests]
    subjects = [str(request.subject) for request in requests]
    targets = [request.target_new for request in requests]
    encoded, positions = encode(tokenizer, statements, targets), subject_ends(tokenizer, statements, subjects)
    with frozen(model):
        delta, norms = _reaching_vectors(model, encoded, positions, layer, steps, clamp)
        with added_value(model, layer, positions, delta):
            reached = target_log_probs(model, encoded).exp() >= 0.5
        answered = [
            match
            for questions in zip(*(request.paraphrases for request in requests), strict=True)
            for match in _answers_with(testbed, layer, delta, questions, subjects, targets)
        ]
    return ValueReach(
        reached=reached.double().mean().item(),
        question_answers=sum(answered) / len(answered),
        relative_norm=(delta.norm(dim=-1) / norms).median().item(),
    )


def _reaching_vectors(
    model: PreTrainedModel, encoded: Encoded, positions: torch.Tensor, layer: int, steps: int, clamp: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each request the vector delta (n, hidden), and the norm (n,) of what it is added to."""
    states = model(encoded.tokens, output_hidden_states=True).hidden_states[layer + 1]
    norms = states[torch.arange(len(positions)), positions].norm(dim=-1)
    delta = torch.zeros(len(positions), states.shape[-1], requires_grad=True)
    # Adam moves every coordinate by about its learning rate: a tenth of a typical coordinate of the state per step.
    optimizer = torch.optim.Adam([delta], lr=0.1 * float(norms.mean()) / states.shape[-1] ** 0.5)
    for _ in range(steps):
        with torch.enable_grad(), added_value(model, layer, positions, delta):
            loss = -target_log_probs(model, encoded, mean=True).sum()
        optimizer.zero_grad()
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        optimizer.step()
        delta *= (clamp * norms / delta.norm(dim=-1).clamp_min(1e-9)).clamp_max(1.0)[:, None]
    return delta.detach(), norms


def _answers_with(
    testbed: Testbed,
    layer: int,
    delta: torch.Tensor,
    prompts: Sequence[str],
    subjects: Sequence[str],
    targets: Sequence[str],
) -> list[bool]:
    positions = subject_ends(testbed.tokenizer, prompts, subjects)
    with added_value(testbed.model, layer, positions, delta):
        return greedy_matches(testbed.model, testbed.tokenizer, prompts, targets, batch_size=len(prompts))


def subject_ends(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], subjects: Sequence[str]) -> torch.Tensor:
    """(batch,): the position of the last token of each subject in its prompt."""
    ends = []
    for prompt, subject in zip(prompts, subjects, strict=True):
        until = prompt.rindex(subject) + len(subject)
        ends.append(len(encode_prompt(tokenizer, prompt[:until])) - 1)
    return torch.tensor(ends)


@contextmanager
def added_value(model: PreTrainedModel, layer: int, positions: torch.Tensor, delta: torch.Tensor) -> Iterator[None]:
    """Inside the block, row i of every forward pass has `delta[i]` added to FFN `layer`'s output at `positions[i]`."""

    def add(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        chosen = torch.zeros_like(output[..., 0]).scatter_(1, positions[:, None], 1.0)
        return output + chosen[..., None] * delta[:, None, :]

    with hooked(model.model.layers[layer].mlp.down_proj, add):
        yield


def target_log_probs(model: PreTrainedModel, encoded: Encoded, mean: bool = False) -> torch.Tensor:
    """(batch,): log-probability of each answer behind its prompt, summed over its tokens, or their `mean`."""
    of_answer = encoded.targets != -100
    log_probs = model(encoded.tokens).logits.float().log_softmax(-1)
    per_token = log_probs.gather(-1, encoded.targets.clamp_min(0)[..., None])[..., 0] * of_answer
    return per_token.sum(-1) / (of_answer.sum(-1) if mean else 1)
