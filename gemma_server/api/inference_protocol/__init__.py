"""The Open Inference Protocol, version 2, as KServe and Triton have it: routes under /v2."""
