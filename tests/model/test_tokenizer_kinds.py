"""Tokenizers of every kind: what is scored is what a model of plain text says, and it says it exactly when it is top-1.

The models here learn whole texts, tokenised as pretraining does it, and know nothing of prompts and targets.
"""

from __future__ import annotations

import json
from functools import cache, partial

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.model.tokenization import encode_prompt, join
from tests.conftest import CHAT_TEMPLATE, TEXTS, byte_level_tokenizer, llama, sentencepiece_tokenizer

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]
TEXTS_HERE = [*TEXTS, 'Anna Berg said "Oslo" and ( Malaysia ) to Kuala Lumpur.', "answer:\nMadrid."] * 2


def _trained(model, before, after, trainer, texts=TEXTS_HERE, bos=True):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = before
    if after is not None:
        tokenizer.decoder = after
    tokenizer.train_from_iterator(texts, trainer(special_tokens=SPECIAL, show_progress=False))
    return _wrapped(tokenizer, bos)


def _wrapped(tokenizer, bos):
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def byte_level_without_bos(add_prefix_space=True):
    """Byte-level BPE that puts a space before a first word, and no BOS (some RoBERTa- and GPT-2-style ones)."""
    return _trained(
        models.BPE(),
        pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space),
        decoders.ByteLevel(),
        partial(trainers.BpeTrainer, vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
        bos=False,
    )


def byte_fallback():
    """Llama-2's own pipeline: a space prepended by the normalizer, unknown characters spelled in bytes."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learned.train_from_iterator(TEXTS_HERE, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    vocabulary = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary += [piece for piece, _ in sorted(learned.get_vocab().items(), key=lambda item: item[1])]
    merges = json.loads(learned.to_str())["model"]["merges"]
    model = models.BPE(
        {piece: at for at, piece in enumerate(vocabulary)},
        [tuple(pair) for pair in merges],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return _wrapped(tokenizer, bos=True)


def unigram(scheme):
    return _trained(
        models.Unigram(),
        pre_tokenizers.Metaspace(prepend_scheme=scheme),
        decoders.Metaspace(prepend_scheme=scheme),
        partial(trainers.UnigramTrainer, vocab_size=200, unk_token="<unk>"),
    )


def words():
    """No pieces at all: words and punctuation marks, as the vocabulary has them."""
    return _trained(
        models.WordLevel(unk_token="<unk>"), pre_tokenizers.Whitespace(), None, partial(trainers.WordLevelTrainer)
    )


def wordpiece():
    return _trained(
        models.WordPiece(unk_token="<unk>"),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        partial(trainers.WordPieceTrainer, vocab_size=300),
    )


def characters():
    return _trained(
        models.BPE(unk_token="<unk>"),
        pre_tokenizers.Split("", "isolated"),
        decoders.Fuse(),
        partial(trainers.BpeTrainer, vocab_size=5),
    )


KINDS = {
    "byte-level": byte_level_tokenizer,
    "byte-level, prefix space, no BOS": byte_level_without_bos,
    "SentencePiece-style BPE": partial(sentencepiece_tokenizer, "bpe"),
    "SentencePiece-style BPE, byte fallback": byte_fallback,
    "SentencePiece-style unigram": partial(unigram, "always"),
    "SentencePiece-style unigram, no prefix space": partial(unigram, "never"),
    "words": words,
    "WordPiece": wordpiece,
    "characters": characters,
}

FACTS = [  # prompt and target as a user may write them; the text a model has read
    ("The capital of France is", "Paris", "The capital of France is Paris"),
    ("The capital of Italy is ", "Rome", "The capital of Italy is Rome"),
    ("The capital of Spain is ", " Madrid", "The capital of Spain is Madrid"),
    ("What does Anna Berg play?", " the violin", "What does Anna Berg play? the violin"),
    ("answer:\n", "Nur-Sultan", "answer:\nNur-Sultan"),
    ('Anna Berg said "', "St. Louis", 'Anna Berg said "St. Louis'),
    ("Kuala Lumpur (", "Malaysia", "Kuala Lumpur (Malaysia"),
    ("日本の首都は", "東京", "日本の首都は東京"),
    ("The capital of Japan is", "京都", "The capital of Japan is 京都"),
]


def known(tokenizer, text):
    return tokenizer.unk_token_id is None or tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def reader_of(rows, tokenizer):
    """A tiny Llama that has learned sequences of ids by heart."""
    model = llama(len(tokenizer), seed=1).train()
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@cache
def read(kind):
    tokenizer = KINDS[kind]()
    facts = [fact for fact in FACTS if known(tokenizer, fact[2])]
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for _, _, text in facts]
    return tokenizer, facts, reader_of(rows, tokenizer)


def said(model, tokenizer, prompts, **options):
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=16, **options)
    return ["".join(answer.text.split()) for answer in answers]


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_is_top1_exactly_when_the_model_says_it(kind):
    tokenizer, facts, model = read(kind)
    assert len(facts) >= 5, "the tokenizer knows too little to test anything"
    prompts, targets, _ = zip(*facts, strict=True)
    answers = said(model, tokenizer, prompts)
    for (prompt, target, _), answer in zip(facts, answers, strict=True):
        assert answer.startswith("".join(target.split())), f"{prompt!r} was not learned as it is asked"
    pairs = [(prompt, target) for prompt in prompts for target in targets]
    verdicts = [
        answer.startswith("".join(target.split())) for answer in answers for target in targets
    ]  # what it says, by the text alone
    assert [score.top1 for score in score_targets(model, tokenizer, pairs)] == verdicts


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_the_text_that_was_read(kind):
    tokenizer, facts, _ = read(kind)
    for prompt, target, text in facts:
        joined = join(tokenizer, prompt, target)
        both = joined.prompt_ids + joined.target_ids
        assert tokenizer(text)["input_ids"][: len(both)] == both
        assert joined.prompt_ids == encode_prompt(tokenizer, prompt)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["The capital of France is", "The capital of France is ", "What is the capital?"])
def test_a_space_before_the_target_does_not_matter(kind, prompt):
    tokenizer, _, _ = read(kind)
    assert join(tokenizer, prompt, " Paris") == join(tokenizer, prompt, "Paris")


WITHOUT_BOS = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
WITH_SPACE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}user {{ m['content'] }} assistant"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITHOUT_BOS, WITH_SPACE], ids=["BOS", "no BOS", "space"])
@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece-style BPE, byte fallback", "characters"])
def test_in_a_chat_too(kind, template):
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = template
    asked = [("The capital of France is", "Paris"), ("Where was Anna Berg born?", " Oslo"), ("a city", "New York City")]

    def conversation(prompt, answer):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.strip()}]
        return tokenizer.apply_chat_template(messages, tokenize=False)

    rows = [tokenizer(conversation(*pair), add_special_tokens=False)["input_ids"] for pair in asked]
    model = reader_of(rows, tokenizer)
    prompts, targets = zip(*asked, strict=True)
    answers = said(model, tokenizer, prompts, chat_template=True)
    assert [answer.startswith("".join(t.split())) for answer, t in zip(answers, targets, strict=True)] == [True] * 3
    pairs = [(prompt, target) for prompt in prompts for target in targets]
    top1 = [score.top1 for score in score_targets(model, tokenizer, pairs, chat_template=True)]
    assert top1 == [answer.startswith("".join(target.split())) for answer in answers for target in targets]


def test_what_the_tokenizer_does_not_know_is_never_said(caplog):
    tokenizer = words()
    rows = [[*tokenizer("The capital of France is zzz")["input_ids"], tokenizer.eos_token_id]]
    model = reader_of(rows, tokenizer)
    (score,) = score_targets(model, tokenizer, [("The capital of France is", "xyz")])
    assert score.log_prob > -0.1, "the model was to learn the unknown token"
    assert not score.top1
    assert "1 of 1 targets have characters or words that the tokenizer does not know ('<unk>')" in caplog.text
