"""From pictures to a run's folders, streaming and resumable."""
