"""A real single-node OpenStack for this machine: Keystone, Glance, Placement, Nova (QEMU) and Neutron of Debian.

    root.py      the packages, once        services.py  what runs, as data      status.py  is it well
    config.py    every file, pure          init.py      runs it, in the node    up.py      up, down, status
    node.py      namespaces and the link   catalog.py   accounts and endpoints  place.py   what lies where
"""
