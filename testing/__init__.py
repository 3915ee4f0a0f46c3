"""What tests, benchmarks and scripts share: tiny checkpoints, oracles, a server under test.

LAW: imports the package, never a test. Nothing here asserts what a test should.
"""
