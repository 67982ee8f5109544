"""Measures what docs/performance.md and performance-*.md say: ours, and a peer's.

    figures.py  what both have in common: rows, table, a cache of its own   proxy.py  counts requests
    local.py    builds, boots and checks on this machine                    alone.py  measured as whole processes
    testcloud.py  the test cloud, and what Dialtone does on it
    generator.py  the media generator of harness.voip
    events.py   events of an OpenSIPS
"""
