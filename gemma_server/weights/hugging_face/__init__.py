"""Directories as Hugging Face publishes them: safetensors files, and the Gemma in them."""
