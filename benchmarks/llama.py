"""llama.cpp's server, from the wheel `xllamacpp`: `python -m benchmarks.llama GGUF`.

It runs on the CPU, with a thread for each CPU that this process may use, and as many slots of the
same context length as gemma-server has by default. `--cache` has its caches of prompts as they are
by default, and whole windows, without which Gemma's texts cannot be gone on with; else they are
off. `--ngram` has its drafts from the text.
"""

import argparse
import os
import signal

SLOTS, CONTEXT_LENGTH = 8, 2048  # gemma-server's defaults
NAME = "llama.cpp"


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="benchmarks.llama", description="llama.cpp's server")
    parser.add_argument("model", metavar="GGUF")
    parser.add_argument("--cache", action="store_true")
    parser.add_argument("--ngram", action="store_true")
    arguments = parser.parse_args()
    serve(arguments.model, caches=arguments.cache, drafts=arguments.ngram)


def serve(model: str, *, caches: bool, drafts: bool) -> None:
    """Serve `model`, and print a line with the address when it is loaded."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT_LENGTH
    params.fit_params = False  # would change the context length to fit the memory
    params.swa_full = caches
    if not caches:
        params.cache_prompt = params.cache_idle_slots = False
        params.cache_ram_mib = params.n_ctx_checkpoints = 0
    if drafts:
        kinds = xllamacpp.common_speculative_type
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    server = xllamacpp.Server(params)
    # In one piece: the library's log goes the same way.
    os.write(1, f"{NAME} ready: {server.listening_address}\n".encode())
    signal.pause()


if __name__ == "__main__":
    main()
