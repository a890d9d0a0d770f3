"""What learns: the learner process and what it does with samples."""
