"""The teacher for people outside the job: an OpenAI-compatible endpoint behind keys, limits, quotas and an audit log.

`app` is the HTTP side, which holds nothing; `admission` is the one place that decides and remembers; `deployment` puts
both on Ray Serve before the teacher. Everything but `deployment` runs without Ray.
"""
