"""From bytes that a client sent to samples of the model's shape: strict, typed, bounded."""
