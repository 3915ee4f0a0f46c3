"""Makes testing/goldens with the Hugging Face library: `python -m scripts.goldens --help`."""
