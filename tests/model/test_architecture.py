"""Where the parts of a decoder are, for every family from its own configuration, and refusals that help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture, ArchitectureError, accepts_logits_to_keep, find_architecture

HIDDEN, INNER = 16, 40
COMMON: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
WIDE: dict[str, Any] = {"hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 2} | COMMON
GPT: dict[str, Any] = {"n_embd": HIDDEN, "n_layer": 3, "n_head": 2, "n_positions": 32, "n_inner": INNER} | COMMON
FULL: dict[str, Any] = {"intermediate_size": INNER} | WIDE
GROUPED: dict[str, Any] = {"num_key_value_heads": 1} | FULL

GATED = ["gate_proj", "up_proj"]
LLAMA = ("model.layers.0", "mlp", GATED, "down_proj", "model.norm")
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 1, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
MAMBA: dict[str, Any] = {"mamba_chunk_size": 8, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
PER_LAYER: dict[str, Any] = {
    "head_dim": 8, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 50, "num_kv_shared_layers": 1,
    "layer_types": ["full_attention"] * 3,
}  # fmt: skip

FAMILIES: dict[str, tuple[Callable[[], Any], tuple[str, str, list[str], str, str]]] = {
    "gpt2": (lambda: hf.GPT2Config(**GPT), ("transformer.h.0", "mlp", ["c_fc"], "c_proj", "transformer.ln_f")),
    "gptj": (
        lambda: hf.GPTJConfig(rotary_dim=4, **GPT),
        ("transformer.h.0", "mlp", ["fc_in"], "fc_out", "transformer.ln_f"),
    ),
    "gpt_neox": (
        lambda: hf.GPTNeoXConfig(**FULL),
        ("gpt_neox.layers.0", "mlp", ["dense_h_to_4h"], "dense_4h_to_h", "gpt_neox.final_layer_norm"),
    ),
    "llama2": (lambda: hf.LlamaConfig(**FULL), LLAMA),
    "llama3": (lambda: hf.LlamaConfig(**GROUPED), LLAMA),
    "llama_square": (lambda: hf.LlamaConfig(**(FULL | {"intermediate_size": HIDDEN})), LLAMA),
    "qwen2": (lambda: hf.Qwen2Config(**GROUPED), LLAMA),
    "qwen3": (lambda: hf.Qwen3Config(head_dim=8, **GROUPED), LLAMA),
    "mistral": (lambda: hf.MistralConfig(**GROUPED), LLAMA),
    "gemma": (lambda: hf.GemmaConfig(head_dim=8, **GROUPED), LLAMA),
    "gemma2": (lambda: hf.Gemma2Config(head_dim=8, **GROUPED), LLAMA),
    "gemma3": (lambda: hf.Gemma3TextConfig(head_dim=8, **GROUPED), LLAMA),
    "phi3": (
        lambda: hf.Phi3Config(**GROUPED),
        ("model.layers.0", "mlp", ["gate_up_proj"], "down_proj", "model.norm"),
    ),
    "olmo2": (lambda: hf.Olmo2Config(**GROUPED), LLAMA),
    # One head of keys and values to two of queries: the attention maps 16 to 32 and 16 to 16, as a gated FFN might.
    "falcon": (
        lambda: hf.FalconConfig(multi_query=True, **WIDE),
        ("transformer.h.0", "mlp", ["dense_h_to_4h"], "dense_4h_to_h", "transformer.ln_f"),
    ),
    "bloom": (
        lambda: hf.BloomConfig(n_layer=3, n_head=2, hidden_size=HIDDEN, **COMMON),
        ("transformer.h.0", "mlp", ["dense_h_to_4h"], "dense_4h_to_h", "transformer.ln_f"),
    ),
    # Their maps lie in the block itself.
    "opt": (
        lambda: hf.OPTConfig(ffn_dim=INNER, word_embed_proj_dim=HIDDEN, max_position_embeddings=64, **WIDE),
        ("model.decoder.layers.0", "", ["fc1"], "fc2", "model.decoder.final_layer_norm"),
    ),
    "xglm": (
        lambda: hf.XGLMConfig(d_model=HIDDEN, ffn_dim=INNER, num_layers=3, attention_heads=2, **COMMON),
        ("model.layers.0", "", ["fc1"], "fc2", "model.layer_norm"),
    ),
    "biogpt": (lambda: hf.BioGptConfig(**FULL), ("biogpt.layers.0", "", ["fc1"], "fc2", "biogpt.layer_norm")),
    "olmo": (lambda: hf.OlmoConfig(**GROUPED), LLAMA),  # whose norms have no weights
    # Which has a low-rank map beside the FFN, and linear maps in lists as long as that of the blocks.
    "gemma3n": (
        lambda: hf.Gemma3nTextConfig(laurel_rank=4, activation_sparsity_pattern=[0.5, 0.0, 0.0], **GROUPED | PER_LAYER),
        LLAMA,
    ),
    "gemma4": (lambda: hf.Gemma4TextConfig(global_head_dim=8, **GROUPED | PER_LAYER), LLAMA),
    "qwen3_5": (lambda: hf.Qwen3_5TextConfig(head_dim=8, **GROUPED | LINEAR), LLAMA),
    "ministral3": (lambda: hf.Ministral3Config(head_dim=8, **GROUPED), LLAMA),
    "phi4": (
        lambda: hf.Phi3Config(partial_rotary_factor=0.75, **GROUPED),
        ("model.layers.0", "mlp", ["gate_up_proj"], "down_proj", "model.norm"),
    ),
    "glm": (
        lambda: hf.GlmConfig(head_dim=8, **GROUPED),
        ("model.layers.0", "mlp", ["gate_up_proj"], "down_proj", "model.norm"),
    ),
    "glm4": (
        lambda: hf.Glm4Config(head_dim=8, **GROUPED),
        ("model.layers.0", "mlp", ["gate_up_proj"], "down_proj", "model.norm"),
    ),
    "lfm2": (
        lambda: hf.Lfm2Config(
            layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False, **GROUPED
        ),
        ("model.layers.0", "feed_forward", ["w1", "w3"], "w2", "model.embedding_norm"),
    ),
    "granite": (
        lambda: hf.GraniteConfig(residual_multiplier=0.5, embedding_multiplier=2.0, logits_scaling=2.0, **GROUPED),
        LLAMA,
    ),
    "granitemoehybrid": (
        lambda: hf.GraniteMoeHybridConfig(
            residual_multiplier=0.5,
            num_local_experts=0,
            shared_intermediate_size=INNER,
            layer_types=["mamba", "attention", "mamba"],
            **GROUPED | MAMBA,
        ),
        ("model.layers.0", "shared_mlp", ["input_linear"], "output_linear", "model.norm"),
    ),
    "falcon_h1": (
        lambda: hf.FalconH1Config(head_dim=8, mamba_d_ssm=32, mlp_multipliers=[2.0, 0.5], **GROUPED | MAMBA),
        ("model.layers.0", "feed_forward", GATED, "down_proj", "model.final_layernorm"),
    ),
}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config).eval()


def run(model: Any) -> Tensor:
    return model(input_ids=torch.arange(3, 11)[None], use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_parts(family: str) -> None:
    config, (block, ffn, up, down, norm) = FAMILIES[family]
    parts = find_architecture(build(config()))
    found = parts.ffn(0)
    assert [place.name for place in parts.blocks] == [f"{block[:-1]}{i}" for i in range(3)]
    assert found.name == (f"{block}.{ffn}" if ffn else block)
    assert [one.name for one in found.up] == [f"{found.name}.{name}" for name in up]
    assert found.down.name == f"{found.name}.{down}"
    assert found.modules == ((found.name,) if ffn else (f"{block}.fc1", f"{block}.fc2"))
    assert parts.norm.name == norm
    assert parts.head.name == ("output_projection" if family == "biogpt" else "lm_head")
    assert parts.hidden_size == HIDDEN


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_what_they_are_said_to_be(family: str) -> None:
    """They run in this order; what the norm puts out the head is given; the FFN is what its maps say."""
    model = build(FAMILIES[family][0]())
    parts = find_architecture(model)
    seen: list[str] = []
    values: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, module: nn.Module) -> None:
        def note(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            seen.append(name)
            # a copy: Falcon goes on working in the memory of what its FFN put out
            values[name] = args[0], output.clone() if isinstance(output, Tensor) else output

        module.register_forward_hook(note)

    places = [parts.embedding, *parts.blocks, parts.norm, parts.head]
    for place in places:
        assert model.get_submodule(place.name) is place.module
        watch(place.name, place.module)
    ffn = parts.ffn(1)
    watch("ffn", ffn.module)
    watch("down", ffn.down.module)
    with torch.no_grad():
        run(model)
    assert [name for name in seen if name not in ("ffn", "down")] == [place.name for place in places]
    assert torch.equal(values[parts.norm.name][1], values[parts.head.name][0])
    # Bloom's FFN adds the residual stream itself, Falcon-H1's multiplies by a number
    if family not in ("bloom", "falcon_h1") and not ffn.loose:
        assert torch.equal(values["ffn"][1], values["down"][1])
    key, value = values["down"]
    bias = getattr(ffn.down.module, "bias", None)
    assert torch.allclose(key @ ffn.down.weight.T + (0 if bias is None else bias), value, atol=1e-6)
    assert ffn.down.weight.shape == (ffn.down.d_out, ffn.down.d_in)
    assert ffn.down.d_out == HIDDEN


def test_the_weight_of_a_transposed_map_is_a_view() -> None:
    model = build(hf.GPT2Config(**GPT))
    down = find_architecture(model).ffn(1).down
    assert down.transposed
    with torch.no_grad():
        down.weight[3, 5] = 7.0
    assert model.transformer.h[1].mlp.c_proj.weight[5, 3] == 7.0


def test_of_a_model_that_sees_the_text_decoder_is_taken() -> None:
    # as many blocks of vision as of text
    sight = {"hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": INNER}
    config = hf.Gemma3Config(
        text_config=GROUPED | {"head_dim": 8},
        vision_config=sight | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    parts = find_architecture(hf.Gemma3ForConditionalGeneration(config))
    assert parts.ffn(2).name == "model.language_model.layers.2.mlp"
    assert parts.norm.name == "model.language_model.norm"


def test_a_block_that_is_not_there_is_refused_with_the_number_of_blocks() -> None:
    parts = find_architecture(build(hf.LlamaConfig(**FULL)))
    for layer in (-1, 3, 1.0, True):
        with pytest.raises(SettingError, match="3 blocks, numbered from 0 to 2"):
            parts.ffn(layer)  # type: ignore[arg-type]


def test_experts_are_refused_where_they_are() -> None:
    parts = find_architecture(build(hf.MixtralConfig(num_local_experts=2, **GROUPED)))
    with pytest.raises(ArchitectureError, match=r"model\.layers\.1\.mlp .*mixture of experts.*modules="):
        parts.ffn(1)
    some = hf.Qwen2MoeConfig(
        num_experts=4, mlp_only_layers=[0], moe_intermediate_size=8, shared_expert_intermediate_size=8, **GROUPED
    )
    parts = find_architecture(build(some))
    assert parts.ffn(0).down.name == "model.layers.0.mlp.down_proj"
    assert parts.ffn(1).down.name == "model.layers.1.mlp.shared_expert.down_proj"  # which every token takes


def test_what_is_refused_can_be_passed_by_hand() -> None:
    model = build(hf.MixtralConfig(num_local_experts=2, **GROUPED))
    parts = find_architecture(model, ffn="model.layers.{}.mlp")
    assert parts.ffn(2).module is model.model.layers[2].mlp
    with pytest.raises(ArchitectureError, match="pass down="):
        _ = parts.ffn(2).down
    down = find_architecture(model, ffn="model.layers.{}.mlp", down="model.layers.{}.self_attn.o_proj").ffn(1).down
    assert down.module is model.model.layers[1].self_attn.o_proj


@pytest.mark.parametrize("family", ["gpt2", "llama3"])
def test_names_by_hand_and_found_agree(family: str) -> None:
    config, (block, ffn, _, down, norm) = FAMILIES[family]
    model = build(config())
    template = block[:-1] + "{}"
    by_hand = find_architecture(
        model,
        blocks=template,
        ffn=f"{template}.{ffn}",
        down=f"{template}.{ffn}.{down}",
        norm=norm,
        head="lm_head",
    )
    found = find_architecture(model)
    assert by_hand.blocks == found.blocks
    assert by_hand.ffn(1) == found.ffn(1)
    assert (by_hand.norm, by_hand.head) == (found.norm, found.head)


@pytest.mark.parametrize("what", ["ffn", "down", "norm", "head", "blocks"])
def test_a_name_that_is_not_there_is_refused(what: str) -> None:
    model = build(hf.LlamaConfig(**FULL))

    def use(parts: Architecture) -> object:
        return parts.ffn(0), parts.norm

    with pytest.raises(ArchitectureError, match=rf"{what}: LlamaForCausalLM has no module 'transformer\.0"):
        use(find_architecture(model, **{what: "transformer.0" if what in ("norm", "head") else "transformer.{}"}))


class TwoTowers(nn.Module):
    """Two lists of blocks, and nothing says which is the decoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, HIDDEN)
        self.left = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.right = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.head = nn.Linear(HIDDEN, 50)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_what_could_be_two_things_is_not_guessed() -> None:
    model = TwoTowers()
    with pytest.raises(ArchitectureError, match=r"left \(2\) and right \(2\) could each be the blocks.*blocks="):
        find_architecture(model)
    assert len(find_architecture(model, blocks="right.{}").blocks) == 2

    twice = build(hf.LlamaConfig(**FULL))
    twice.model.layers[0].add_module("mlp2", twice.model.layers[1].mlp)
    with pytest.raises(ArchitectureError, match=r"model\.layers\.0\.mlp or model\.layers\.0\.mlp2"):
        find_architecture(twice).ffn(0)
    assert find_architecture(twice, ffn="model.layers.{}.mlp2").ffn(0).name == "model.layers.0.mlp2"


def test_a_block_without_an_ffn_is_refused_with_what_it_has() -> None:
    mamba = build(hf.MambaConfig(hidden_size=HIDDEN, num_hidden_layers=3, state_size=8, **COMMON))
    with pytest.raises(ArchitectureError, match=r"backbone\.layers\.0 \(MambaBlock\): no child looks like an FFN"):
        find_architecture(mamba).ffn(0)
    # of linear maps in the block itself nothing is made where another child might be the FFN
    opt = build(FAMILIES["opt"][0]())
    opt.model.decoder.layers[0].add_module("other", nn.Sequential(nn.Linear(HIDDEN, HIDDEN)))
    with pytest.raises(ArchitectureError, match=r"decoder\.layers\.0\.other \(Sequential\) has 1 linear map,"):
        find_architecture(opt).ffn(0)


def test_a_model_without_head_or_with_an_adapter_is_refused() -> None:
    headless = hf.AutoModel.from_config(hf.LlamaConfig(**FULL))
    with pytest.raises(ArchitectureError, match="AutoModelForCausalLM"):
        find_architecture(headless)
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build(hf.LlamaConfig(**FULL)), peft.LoraConfig(target_modules="all-linear"))
    with pytest.raises(ArchitectureError, match="merge_and_unload"):
        find_architecture(adapted)
    assert find_architecture(adapted.merge_and_unload()).ffn(0).name == "model.layers.0.mlp"


def test_says_whether_the_head_can_be_told_where_to_run() -> None:
    model = build(hf.LlamaConfig(**FULL))
    assert accepts_logits_to_keep(model)
    assert not accepts_logits_to_keep(TwoTowers())
