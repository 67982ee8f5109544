"""Reaching a server: routes, ssh_config, pinned host keys, readiness."""
