"""Which architecture the saved arguments choose, and which arguments are refused, by name. No Megatron needed."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from typing import Any

import pytest
from megatron_world import CASES, SINGLETONS

from autoeval.convert import arguments
from autoeval.convert.architectures import ARCHITECTURES, choose
from autoeval.convert.arguments import ModelArguments, parse_arguments
from autoeval.convert.errors import ConversionError
from autoeval.convert.mapping import Target, _rows, _shapes, config_of, mapping_digest
from autoeval.convert.megatron_cpu import gpt_args


def parse(case: str, **overrides: Any) -> ModelArguments:
    arguments = {name: value for name, value in CASES[case][1].items() if name != SINGLETONS}
    return parse_arguments(gpt_args(**{**arguments, **overrides}), "iter_0000010")


@pytest.mark.parametrize("case", CASES)
def test_the_arguments_choose(case: str) -> None:
    assert choose(parse(case), "iter_0000010").name == CASES[case][0]


def test_every_architecture_is_compared_with_megatron() -> None:
    assert {architecture.name for architecture in ARCHITECTURES} == {name for name, _ in CASES.values()}
    assert len({mapping_digest(architecture) for architecture in ARCHITECTURES}) == len(ARCHITECTURES)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_rows_are_what_save_pretrained_writes(case: str, tied: bool) -> None:
    model = parse(case, untie_embeddings_and_output_weights=not tied)
    target = Target(choose(model, case), model, model.padded_vocab_size, model.tied)
    names = [row.target for row in _rows(target)]
    assert len(names) == len(set(names)) and set(names) == set(_shapes(target))


@pytest.mark.parametrize("case", CASES)
def test_transformers_knows_every_key_of_the_configuration(case: str) -> None:
    """An unknown key would be kept as an attribute that nothing reads."""
    model = parse(case)
    architecture = choose(model, case)
    config = config_of(Target(architecture, model, 256, model.tied), "float32")
    known = {field.name for field in dataclasses.fields(type(config))} | set(config.attribute_map)
    # Attentions read head_dim where it is there; the other is what num_mtp_layers is stored as.
    assert set(architecture.config(model)) - known <= {"head_dim", "num_nextn_predict_layers"}
    assert getattr(config, "num_mtp_layers", 0) == 0


def test_experts_stand_on_disk_as_published_models_have_them() -> None:
    def names(case: str) -> set[str]:
        model = parse(case)
        return {row.target for row in _rows(Target(choose(model, case), model, 256, False))}

    assert {f"model.layers.1.block_sparse_moe.experts.3.{w}.weight" for w in ("w1", "w2", "w3")} < names("mixtral")
    assert "model.layers.0.mlp.down_proj.weight" in names("qwen3_moe")
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in names("qwen3_moe")
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in names("deepseek_v3")


@pytest.mark.parametrize(
    ("case", "change", "named"),
    [
        # Arithmetic that no architecture has.
        ("llama", {"rotary_interleaved": True}, "rotary_interleaved"),
        ("llama", {"rotary_seq_len_interpolation_factor": 2}, "rotary_seq_len_interpolation_factor"),
        ("llama", {"softmax_type": "learnable"}, "softmax_type"),
        ("llama", {"window_size": (8, 0), "window_attn_skip_freq": 2}, "window_attn_skip_freq"),
        ("llama", {"window_size": (8, 1)}, "window_size"),
        ("llama", {"window_size": (8, -1)}, "window_size"),
        ("llama", {"no_rope_freq": 4}, "no_rope_freq"),
        ("llama", {"spec": ["my.module", "my_spec"]}, "spec"),
        ("llama", {"hybrid_layer_pattern": "M*M*"}, "hybrid_layer_pattern"),
        ("llama", {"use_mup": True}, "use_mup"),
        ("llama", {"swiglu": False, "use_te_activation_func": True}, "use_te_activation_func"),
        ("llama", {"position_embedding_type": "none"}, "position_embedding_type"),
        ("gpt2", {"add_position_embedding": False}, "position_embedding_type"),
        ("gpt2", {"group_query_attention": True, "num_query_groups": 2}, "num_query_groups"),
        ("gpt2", {"kv_channels": 24}, "kv_channels"),
        ("gpt2", {"qk_layernorm": True}, "qk_layernorm"),
        ("gpt2", {"normalization": "RMSNorm"}, "normalization"),
        # Combinations of which each half exists.
        ("qwen3", {"add_qkv_bias": True}, "add_qkv_bias"),
        ("phi3", {"use_rope_scaling": True}, "rope_scaling_factor"),
        ("phi3", {"add_bias_linear": True}, "add_bias_linear|rotary_percent"),
        ("nemotron", {"rotary_percent": 0.0}, "rotary_percent"),
        # Experts.
        ("mixtral", {"moe_expert_capacity_factor": 1.0}, "moe_expert_capacity_factor"),
        ("mixtral", {"moe_router_load_balancing_type": "sinkhorn"}, "moe_router_load_balancing_type"),
        ("mixtral", {"moe_router_load_balancing_type": ["aux_loss", "sinkhorn"]}, "moe_router_load_balancing_type"),
        ("mixtral", {"moe_router_pre_softmax": True}, "moe_router_pre_softmax"),
        ("mixtral", {"moe_router_topk_scaling_factor": 2.0}, "moe_router_topk_scaling_factor"),
        ("mixtral", {"moe_router_score_function": "sigmoid"}, "moe_router_score_function"),
        ("mixtral", {"moe_shared_expert_intermediate_size": 48}, "moe_shared_expert"),
        ("mixtral", {"moe_layer_freq": [1, 0]}, "moe_layer_freq"),
        ("mixtral", {"moe_layer_freq": [1, 0, 1]}, "moe_layer_freq"),
        ("mixtral", {"moe_apply_probs_on_input": True}, "moe_apply_probs_on_input"),
        ("mixtral", {"moe_input_jitter_eps": 0.1}, "moe_input_jitter_eps"),
        ("qwen2_moe", {"moe_shared_expert_gate": False}, "moe_shared_expert_gate"),
        # Latent attention.
        ("glm4_moe", {"num_experts": 4}, "num_experts"),
        ("deepseek_v3", {"norm_epsilon": 1e-5}, "norm_epsilon"),
        ("deepseek_v3", {"qk_layernorm": False}, "qk_layernorm"),
        ("deepseek_v3", {"moe_router_topk": 2}, "moe_router_topk // moe_router_group_topk"),
        ("deepseek_v2", {"moe_router_topk": 4}, "moe_router_topk // moe_router_group_topk"),
        ("deepseek_v3", {"moe_layer_freq": [1, 0]}, "moe_layer_freq"),
        ("deepseek_v3", {"moe_shared_expert_intermediate_size": 50}, "moe_shared_expert_intermediate_size"),
        ("deepseek_v3", {"rope_type": "rope"}, "mscale_all_dim"),
        ("deepseek_v2", {"moe_router_pre_softmax": False}, "moe_router_pre_softmax"),
        # Nonsense.
        ("llama", {"num_layers": True}, "num_layers"),
        ("llama", {"num_query_groups": 3}, "num_query_groups"),
        ("llama", {"rotary_base": "big"}, "rotary_base"),
        ("llama", {"window_size": 8}, "window_size"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(case: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConversionError, match=named) as refused:
        choose(parse(case, **change), "iter_0000010")
    assert str(refused.value).startswith("iter_0000010: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "gelu"),
        ({"bias_gelu_fusion": True}, "gelu_tanh"),  # Megatron-LM's default
        ({"bias_gelu_fusion": True, "add_bias_linear": False}, "gelu"),  # validate_args turns it off
        ({"openai_gelu": True}, "gelu"),  # megatron-core ignores it
        ({"openai_gelu": True, "use_legacy_models": True}, "gelu_tanh"),
        ({"bias_gelu_fusion": True, "onnx_safe": True, "use_legacy_models": True}, "gelu"),
        ({"geglu": True}, "geglu"),
        ({"geglu": True, "bias_gelu_fusion": True}, "geglu_tanh"),
    ],
)
def test_which_gelu_was_computed(change: dict[str, Any], expected: str) -> None:
    assert parse("gpt2", **change).activation == expected


def test_whether_a_model_is_older_than_megatron_core() -> None:
    def activation(**flags: bool) -> str:
        args = gpt_args(openai_gelu=True, **flags)
        if "use_legacy_models" not in flags:
            del args.use_legacy_models
        return parse_arguments(args, "iter_0000010").activation

    assert activation() == "gelu_tanh"  # before 2023-09 there was nothing else
    assert activation(use_mcore_models=True) == activation(deprecated_use_mcore_models=False) == "gelu"
    assert activation(use_legacy_models=False) == "gelu"


def test_arguments_that_older_megatrons_did_not_have() -> None:
    needed = {
        "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "layernorm_epsilon": 1e-5, "seq_length": 128,
        "padded_vocab_size": 256,
    }  # fmt: skip
    model = parse_arguments(argparse.Namespace(**needed), "iter_0000010")
    assert (model.ffn_hidden_size, model.head_size, model.query_groups, model.max_positions) == (256, 16, 4, 128)
    assert (model.window, model.experts, model.latent, model.further_tokens) == (None, None, None, 0)
    assert choose(model, "iter_0000010").name == "gpt2"
    for name in needed:
        lacking = argparse.Namespace(**{key: value for key, value in needed.items() if key != name})
        with pytest.raises(ConversionError, match="saved arguments have n"):
            parse_arguments(lacking, "iter_0000010")
    latent = parse_arguments(
        argparse.Namespace(**needed, multi_latent_attention=True, q_lora_rank=None), "iter_0000010"
    ).latent
    assert latent and (latent.query_rank, latent.key_value_rank, latent.rope_type) == (None, 512, "yarn")


# Fields of TransformerConfig that leave a trained model's logits as they are, but for rounding.
INDIFFERENT = re.compile(
    r"""
    init_method|perform_initialization|meta_device|loss|bias_update_rate|qk_clip|log_max|per_layer_logging|per_token|test_mode
    |grad|dropout|recompute|activations$|checkpoint
    |fp8|fp4|fp16|bf16|amax|softmax_in_fp32|fp32_residual|autocast|params_dtype|router_dtype|quant|kitchen
    |fusion|fused|persist_layer_norm|memory_efficient|grouped_gemm|deterministic|attention_backend|transformer_impl|batch_invariant
    |parallel|overlap|pipeline|p2p|sync|comm|ub_|tp_|cp_|barrier|timers|microbatch|dispatcher|deepep|hybridep|extended_tp
    |variable_seq|cuda_graph|offload|cpu_|inference|flash_decode|rng_tracker|symmetric|mlp_chunks|cache_mla|config_logger
    |clone_scatter|transpose_cache|routing_replay
    |apply_query_key_layer_scaling  # divides the scores and multiplies them again
    |pad_expert_input|token_drop_policy  # only with moe_expert_capacity_factor
    |mamba|^linear_|dsa_  # only with experimental_attention_variant, or in hybrid models
    |heterogeneous_block_specs  # only with heterogeneous_layers_config_path
    |num_moe_experts|gated_linear_unit|activation_func$  # from num_experts, swiglu and the like
    """,
    re.VERBOSE,
)


@pytest.mark.slow  # imports megatron-core
@pytest.mark.filterwarnings("ignore")
def test_every_field_of_megatrons_configuration_is_accounted_for() -> None:
    config = pytest.importorskip("megatron.core.transformer.transformer_config")
    fields = {field.name for field in dataclasses.fields(config.MLATransformerConfig)}
    assert len(fields) > 200
    read = inspect.getsource(arguments)
    assert {name for name in fields if f'"{name}"' not in read and not INDIFFERENT.search(name)} == set()
