"""Repair of cut modules by least squares, one module at a time: no training."""
