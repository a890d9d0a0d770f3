"""What watches the learner: starts it, hears it, starts it again; its jobs."""
