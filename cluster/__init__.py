"""The run as a whole: CLI, phases, jobs, capacity, report; Ray and Kubernetes manifests."""
