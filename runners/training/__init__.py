"""What a training step computes, and the gates that guard it."""
