"""Workflows written in Python: functions, calls between them, and constructs around the calls.

Depends on the standard library and `qflow.types` only: such files load without gRPC.
"""
