"""llama.cpp's server, from the wheel `xllamacpp`: `python -m benchmarks.llama GGUF`.

It runs on the CPU, with a thread for each CPU that this process may use, as many slots of the same
context length as gemma-server has by default, and all caches of prompts off.
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
    serve(parser.parse_args().model)


def serve(model: str) -> None:
    """Serve `model`, and print a line with the address when it is loaded."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT_LENGTH
    params.fit_params = False  # would change the context length to fit the memory
    params.cache_prompt = params.cache_idle_slots = False
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    server = xllamacpp.Server(params)
    print(f"{NAME} ready: {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
