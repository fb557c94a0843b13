"""Training: one loop, objectives that compose by weighted sum, and runs that survive being killed."""
