"""Token windows and tasks, from the Hub, from local files or from the demo corpus."""
