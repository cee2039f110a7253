"""Builds, trains and scores one allocation; works without Ray."""
