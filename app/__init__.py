"""Onehop: identity, users and jobs in one process, behind one middleware stack."""

__version__ = "0.1.0"
