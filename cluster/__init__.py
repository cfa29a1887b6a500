"""The run as a whole: CLI, phases, jobs, capacity, report; Ray and Kubernetes manifests."""

import services  # noqa: F401  sets the environment that deltalake reads, which modules here import first
