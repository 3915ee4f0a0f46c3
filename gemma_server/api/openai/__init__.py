"""OpenAI's routes, and vLLM's `/tokenize` and `/detokenize` beside them."""
