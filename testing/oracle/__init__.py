"""Reference implementations that the tests compare the served models with."""
