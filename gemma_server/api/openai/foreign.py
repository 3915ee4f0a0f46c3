"""Fields of other servers that would change the answer, each with the values that ask for nothing.

testing/foreign_fields.toml has all that these servers take.
"""

from collections.abc import Mapping
from typing import Any

_OFF: tuple[Any, ...] = (0, False, "", [], {})
FOREIGN: Mapping[str, tuple[Any, ...]] = {
    # what the text has to be
    **dict.fromkeys(("structural_tag", "ebnf", "guided_whitespace_pattern"), ()),
    **dict.fromkeys(("grammar_triggers", "bad_words", "bad_words_ids"), _OFF),
    **dict.fromkeys(("allowed_token_ids", "force_words_ids", "suppress_tokens"), _OFF),
    **dict.fromkeys(("begin_suppress_tokens", "custom_token_bans", "ban_eos_token"), _OFF),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "sequence_bias"), ()),
    "prediction": (),
    # how it is drawn
    **dict.fromkeys(("typical_p", "tfs", "tfs_z", "length_penalty", "repeat_penalty"), (1,)),
    **dict.fromkeys(("dynatemp_exponent", "encoder_repetition_penalty", "guidance_scale"), (1,)),
    **dict.fromkeys(("smoothing_curve", "num_beams", "num_beam_groups", "best_of"), (1,)),
    **dict.fromkeys(("use_beam_search", "early_stopping", "diversity_penalty"), _OFF),
    **dict.fromkeys(("mirostat", "mirostat_mode", "dry_multiplier", "xtc_probability"), _OFF),
    **dict.fromkeys(("dynatemp_range", "dynamic_temperature", "smoothing_factor", "top_a"), _OFF),
    **dict.fromkeys(
        ("epsilon_cutoff", "eta_cutoff", "penalty_alpha", "no_repeat_ngram_size"), _OFF
    ),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "temperature_last", "negative_prompt"), _OFF),
    **dict.fromkeys(("exponential_decay_length_penalty", "logits_processors"), _OFF),
    **dict.fromkeys(("custom_logit_processor", "custom_params", "vllm_xargs", "lora"), _OFF),
    **dict.fromkeys(("watermark", "watermarking", "samplers", "sampler_priority"), _OFF),
    **dict.fromkeys(("lora_path", "adapter_id"), _OFF),
    **dict.fromkeys(("top_n_sigma", "adaptive_target", "top_h"), (-1, 0)),
    "repetition_penalty_range": (0,),
    "do_sample": (True,),
    "min_keep": (0, 1),
    "sampling_seed": (),
    # where it ends
    **dict.fromkeys(("max_new_tokens", "n_predict", "truncate_prompt_tokens"), (-1,)),
    **dict.fromkeys(("min_new_tokens", "n_indent", "t_max_predict_ms"), (0, -1)),
    **dict.fromkeys(("stop_sequences", "stop_regex", "repetition_detection"), _OFF),
    **dict.fromkeys(("include_stop_str_in_output", "no_stop_trim"), _OFF),
    "truncation_side": ("left",),
    # what is told beside it
    **dict.fromkeys(("n_probs", "top_n_tokens", "details", "decoder_input_details"), _OFF),
    **dict.fromkeys(("prompt_logprobs", "logprob_token_ids", "response_fields"), ()),
    **dict.fromkeys(("post_sampling_probs", "return_full_text", "return_tokens"), _OFF),
    **dict.fromkeys(("return_tokens_as_token_ids", "return_token_ids", "return_prompt_text"), _OFF),
    **dict.fromkeys(("return_token_offsets", "return_hidden_states"), _OFF),
    **dict.fromkeys(("return_routed_experts", "return_cached_tokens_details"), _OFF),
    "n_cmpl": (1,),
    "skip_special_tokens": (True,),
    # what is read
    **dict.fromkeys(("image_data", "prompt_embeds", "session_params"), _OFF),
    **dict.fromkeys(("tool_prompt", "guideline", "preserved_tokens"), _OFF),
    "add_special_tokens": (True,),
    "thinking_forced_open": (False,),
}
