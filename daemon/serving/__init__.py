"""What serves: versions, the gate between learning and serving, the slot that answers."""
