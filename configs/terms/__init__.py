"""Licence and terms policy: what licences and services say, as data, and the pure decision over a run's sources."""
