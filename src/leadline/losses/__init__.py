"""Losses: pure functions of N x 1 x H x W tensors with a mask; an all-invalid batch gives 0 with a gradient."""
