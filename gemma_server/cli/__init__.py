"""The command line.

LAW: nothing imports it. A module for each command, imported when the command is given.
"""
