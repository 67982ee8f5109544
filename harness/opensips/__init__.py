"""OpenSIPS from outside: its Management Interface (MI), and the events that it sends to those who subscribe.

Sources: mi/, evi/, modules/mi_*, modules/event_* of OpenSIPS 3.6 and 4.0, and the JSON-RPC 2.0 specification.
"""
