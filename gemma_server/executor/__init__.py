"""Plans in, tokens out: the programs that run the model, compiled once and kept on disk.

LAW: the only place that compiles. Imports the model and the engine's plans; only the engine's
thread touches the runner.
"""
