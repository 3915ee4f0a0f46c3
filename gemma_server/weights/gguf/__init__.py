"""GGUF: the file, its blocks, and the Gemma in it."""
