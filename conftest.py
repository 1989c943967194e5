"""Registers the plugins of the test suite; it stands in the root because only there pytest reads `pytest_plugins`."""

pytest_plugins = ["tests.oracle_plugin", "pytester"]
