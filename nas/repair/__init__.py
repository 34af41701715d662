"""Closed-form repair of cut modules: no training."""
