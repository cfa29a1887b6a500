"""One module a phase: each reads what the phase before committed, can be run again, and does nothing twice."""
