"""What keeps learning inside the limits: it slows or pauses the learner, never predictions."""
