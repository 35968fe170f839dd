"""Rendered street scenes with exact masks."""
