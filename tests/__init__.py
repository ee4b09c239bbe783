"""Tests of the rooms of fastdeit, in folders of their names.

This file makes `python -m tests.support.NAME` run the one here, not an installed package `tests`.
"""
