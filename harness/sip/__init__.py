"""Calls by SIP (RFC 3261) through a proxy that asks a media relay: programs of Debian, configured by templates here."""
