"""The Hugging Face library's side of benchmarks.gpu: the same architecture with random weights.

Imports nothing else of this repository, so that any Python with torch and transformers runs it.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

PROMPT, TOKENS = 512, 64


def main() -> None:
    """Measure the architecture of the first argument with as many rows as each of the others."""
    config, batches = json.loads(sys.argv[1]), list(map(int, sys.argv[2:]))
    for figures in measure(config, batches):
        print(json.dumps(figures), flush=True)


def measure(config: dict[str, Any], batches: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Prefill, then decode with each number of rows."""
    import torch

    model = make_model(config)
    cache = working_cache(model)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"
    about = {"device": device, "cache": cache or "dynamic"}
    prefill_s = statistics.median(seconds(model, cache, 1, 1) for _ in range(5))
    yield about | {"prefill_s": prefill_s, "tok_s": PROMPT / prefill_s}
    for batch in batches:
        one, many = (
            min(seconds(model, cache, batch, tokens) for _ in range(2))
            for tokens in (1, 1 + TOKENS)
        )
        step_s = (many - one) / TOKENS
        yield about | {"batch": batch, "step_s": step_s, "tok_s": batch / step_s}


def make_model(config: dict[str, Any]) -> Any:
    """A Gemma 3 of these sizes."""
    import torch
    import transformers

    kinds = [
        "full_attention" if (layer + 1) % config["global_every"] == 0 else "sliding_attention"
        for layer in range(config["layers"])
    ]
    theirs = transformers.Gemma3TextConfig(
        vocab_size=config["vocab"],
        hidden_size=config["width"],
        intermediate_size=config["hidden"],
        num_hidden_layers=config["layers"],
        num_attention_heads=config["heads"],
        num_key_value_heads=config["kv_heads"],
        head_dim=config["head_dim"],
        query_pre_attn_scalar=round(config["query_scale"] ** -2),
        sliding_window=config["window"],
        layer_types=kinds,
        max_position_embeddings=config["context_length"],
    )
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return transformers.Gemma3ForCausalLM(theirs).eval()


def working_cache(model: Any) -> str | None:
    """The static cache if `generate` can use it; None is the library's default."""
    try:
        seconds(model, "static", 1, 2)
    except Exception as error:  # whatever it is, the other one is left
        print(f"no static cache: {error}", file=sys.stderr)
        return None
    return "static"


def seconds(model: Any, cache: str | None, batch: int, tokens: int) -> float:
    """How long it takes to read random prompts and draw exactly so many tokens behind each."""
    import torch

    ids = torch.randint(model.config.vocab_size, (batch, PROMPT), device=model.device)
    began = time.perf_counter()
    answer = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        cache_implementation=cache,
        disable_compile=True,
    )
    answer.cpu()  # waits for the device
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
